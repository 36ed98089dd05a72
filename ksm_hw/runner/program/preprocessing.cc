#include "preprocessing.h"

#include <algorithm>
#include <cmath>

#include "resize.h"

namespace ksm {
namespace {

Image ScaleShorterSide(const Image& image, int length, bool bicubic) {
  const double factor = static_cast<double>(length) / std::min(image.width, image.height);
  // nearbyint rounds halves to even, as Python's round does.
  auto scaled = [&](int side) { return std::max(length, static_cast<int>(std::nearbyint(side * factor))); };
  return Resize(image, scaled(image.width), scaled(image.height), bicubic);
}

}  // namespace

std::vector<float> Preprocess(const Image& image, const Preprocessing& preprocessing) {
  const Image scaled = ScaleShorterSide(image, preprocessing.resize_to, preprocessing.bicubic);
  const int size = preprocessing.image_size;
  const int left = (scaled.width - size) / 2, top = (scaled.height - size) / 2;
  std::vector<float> input(3 * static_cast<size_t>(size) * size);
  float* value = input.data();
  for (int channel = 0; channel < 3; ++channel) {
    for (int y = 0; y < size; ++y) {
      for (int x = 0; x < size; ++x) {
        const float pixel = scaled.At(left + x, top + y)[channel] / 255.0f;
        *value++ = (pixel - preprocessing.mean[channel]) / preprocessing.std[channel];
      }
    }
  }
  return input;
}

}  // namespace ksm
