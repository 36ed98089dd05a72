// Images in memory, and reading them from files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ksm {

// Red, green, blue, row by row.
struct Image {
  int width, height;
  std::vector<uint8_t> pixels;

  Image(int width, int height) : width(width), height(height), pixels(3 * static_cast<size_t>(width) * height) {}
  uint8_t* At(int x, int y) { return &pixels[3 * (static_cast<size_t>(y) * width + x)]; }
  const uint8_t* At(int x, int y) const { return &pixels[3 * (static_cast<size_t>(y) * width + x)]; }
};

constexpr int64_t kMostPixels = 89478485;  // Where Pillow suspects an attack.

// Reads a PNG, JPEG, BMP or GIF file, upright as its EXIF says; transparent pixels are laid over white. Throws
// UserError where that fails, or where it has more than `max_pixels`.
Image ReadImage(const std::string& path, int64_t max_pixels = kMostPixels);

}  // namespace ksm
