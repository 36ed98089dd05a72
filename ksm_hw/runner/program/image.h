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

// Reads a PNG, JPEG, BMP or GIF file; transparent pixels are laid over white. Throws UserError where that fails.
Image ReadImage(const std::string& path);

}  // namespace ksm
