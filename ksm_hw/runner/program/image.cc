#include "image.h"

#include <memory>

#include "error.h"

// The decoder is part of the program, so that a board needs no image libraries.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STBI_ONLY_GIF
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb_image.h>
#pragma GCC diagnostic pop

namespace ksm {
namespace {

constexpr int64_t kMostPixels = 89478485;  // Where Pillow suspects an attack.

// A colour over white, to the bit as Pillow's alpha_composite: 7 bits more than a byte, and rounded once.
uint8_t OverWhite(uint32_t color, uint32_t alpha) {
  const uint32_t blended = color * (alpha << 7) + 255 * ((255 - alpha) << 7) + (0x80 << 7);
  return static_cast<uint8_t>((((blended >> 8) + blended) >> 8) >> 7);
}

}  // namespace

Image ReadImage(const std::string& path) {
  std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw UserError("No image at " + path + ". Check the path.");
  int width = 0, height = 0, channels = 0;
  const bool known = stbi_info_from_file(file.get(), &width, &height, &channels) != 0;
  const bool too_large = known && static_cast<int64_t>(width) * height > kMostPixels;
  std::unique_ptr<uint8_t, void (*)(void*)> decoded(
      known && !too_large ? stbi_load_from_file(file.get(), &width, &height, &channels, 4) : nullptr, stbi_image_free);
  if (!decoded) {
    const std::string reason = too_large ? "it is too large" : stbi_failure_reason();
    throw UserError("Cannot decode " + path + " as an image (" + reason +
                    "). Expected PNG, JPEG, BMP or GIF of at most " + std::to_string(kMostPixels) +
                    " pixels, or .npy; convert the file or leave it out.");
  }
  Image image(width, height);
  const size_t pixels = static_cast<size_t>(width) * height;
  for (size_t pixel = 0; pixel < pixels; ++pixel) {
    const uint8_t* rgba = decoded.get() + 4 * pixel;
    for (int channel = 0; channel < 3; ++channel) {
      image.pixels[3 * pixel + channel] = OverWhite(rgba[channel], rgba[3]);
    }
  }
  return image;
}

}  // namespace ksm
