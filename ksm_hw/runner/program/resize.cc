#include "resize.h"

#include <algorithm>
#include <cmath>

namespace ksm {
namespace {

// Pillow (libImaging/Resample.c) weighs bytes in fixed point with this many bits behind the point: 32, less 8 of the
// byte, less 2 for sums beyond the byte. Anything else would round some pixels otherwise.
constexpr int kFractionBits = 22;

// The source pixels that make one target pixel along one axis, and their weights.
struct Taps {
  int first;
  std::vector<int32_t> weights;
};

double Bilinear(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

double Bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

Taps TapsOf(int target, double scale, int source_length, bool bicubic) {
  const double widened = std::max(scale, 1.0);
  const double reach = (bicubic ? 2.0 : 1.0) * widened;
  const double center = (target + 0.5) * scale;
  const int first = std::max(0, static_cast<int>(center - reach + 0.5));
  const int end = std::min(source_length, static_cast<int>(center + reach + 0.5));
  std::vector<double> weights;
  double sum = 0.0;
  for (int source = first; source < end; ++source) {
    const double distance = (source - center + 0.5) * (1.0 / widened);
    weights.push_back(bicubic ? Bicubic(distance) : Bilinear(distance));
    sum += weights.back();
  }
  Taps taps{first, {}};
  for (double weight : weights) {
    const double fixed = weight / sum * (1 << kFractionBits);
    taps.weights.push_back(static_cast<int32_t>(fixed + (weight < 0 ? -0.5 : 0.5)));
  }
  return taps;
}

std::vector<Taps> AllTaps(int source_length, int target_length, bool bicubic) {
  const double scale = static_cast<double>(source_length) / target_length;
  std::vector<Taps> all;
  for (int target = 0; target < target_length; ++target) all.push_back(TapsOf(target, scale, source_length, bicubic));
  return all;
}

// The weighted sum of pixels that lie `stride` bytes apart, as a byte.
uint8_t Weigh(const uint8_t* first, size_t stride, const std::vector<int32_t>& weights) {
  int32_t sum = 1 << (kFractionBits - 1);
  for (size_t tap = 0; tap < weights.size(); ++tap) sum += first[tap * stride] * weights[tap];
  return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

Image ScaleWidth(const Image& image, int width, bool bicubic) {
  const std::vector<Taps> columns = AllTaps(image.width, width, bicubic);
  Image scaled(width, image.height);
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < width; ++x) {
      const uint8_t* first = image.At(columns[x].first, y);
      for (int channel = 0; channel < 3; ++channel) {
        scaled.At(x, y)[channel] = Weigh(first + channel, 3, columns[x].weights);
      }
    }
  }
  return scaled;
}

Image ScaleHeight(const Image& image, int height, bool bicubic) {
  const std::vector<Taps> rows = AllTaps(image.height, height, bicubic);
  const size_t row_bytes = 3 * static_cast<size_t>(image.width);
  Image scaled(image.width, height);
  for (int y = 0; y < height; ++y) {
    const uint8_t* first = image.At(0, rows[y].first);
    uint8_t* target = scaled.At(0, y);
    for (size_t byte = 0; byte < row_bytes; ++byte) target[byte] = Weigh(first + byte, row_bytes, rows[y].weights);
  }
  return scaled;
}

}  // namespace

Image Resize(const Image& image, int width, int height, bool bicubic) {
  // Bytes lie between the two steps, so their order matters by a level. It is that of Pillow 13; an older one always
  // begins with the width.
  if (image.height - height > std::max(0, 2 * (image.width - width))) {
    return ScaleWidth(ScaleHeight(image, height, bicubic), width, bicubic);
  }
  return ScaleHeight(ScaleWidth(image, width, bicubic), height, bicubic);
}

}  // namespace ksm
