#include "preprocessing.h"

#include <algorithm>
#include <cmath>

#include "resize.h"

namespace ksm {
namespace {

// Of an image that is longer than so many times its width, only the middle is scaled, as ksm_hw/masks/preprocessing.py
// does it: the rest would become gigabytes, to be cropped away.
constexpr int64_t kLongest = 64;

Image Crop(const Image& image, int left, int top) {
  Image middle(image.width - 2 * left, image.height - 2 * top);
  for (int y = 0; y < middle.height; ++y) {
    const uint8_t* row = image.At(left, top + y);
    std::copy(row, row + 3 * static_cast<size_t>(middle.width), middle.At(0, y));
  }
  return middle;
}

Image ScaleShorterSide(const Image& image, int length, bool bicubic) {
  const double factor = static_cast<double>(length) / std::min(image.width, image.height);
  // nearbyint rounds halves to even, as Python's round does.
  auto scaled = [&](int side) { return std::max(length, static_cast<int>(std::nearbyint(side * factor))); };
  return Resize(image, scaled(image.width), scaled(image.height), bicubic);
}

Image ScaleMiddle(const Image& image, int length, bool bicubic) {
  const int64_t longest = kLongest * std::min(image.width, image.height);
  auto beyond = [longest](int side) { return static_cast<int>(std::max<int64_t>(side - longest, 0) / 2); };
  const int left = beyond(image.width), top = beyond(image.height);
  if (left == 0 && top == 0) return ScaleShorterSide(image, length, bicubic);
  return ScaleShorterSide(Crop(image, left, top), length, bicubic);
}

}  // namespace

std::vector<float> Preprocess(const Image& image, const Preprocessing& preprocessing) {
  const Image scaled = ScaleMiddle(image, preprocessing.resize_to, preprocessing.bicubic);
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
