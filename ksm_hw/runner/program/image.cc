#include "image.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "error.h"
#include "gif.h"
#include "jpeg_segments.h"
#include "orientation.h"

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

constexpr size_t kMostBytes = size_t{1} << 30;  // A device such as /dev/zero never ends.

// The content of a file. Through C, for a stream of C++ does not say what failed.
std::string Content(const std::string& path) {
  std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file && errno == ENOENT) throw UserError("No image at " + path + ". Check the path.");
  std::string content;
  char block[1 << 16];
  for (size_t count = 1; file && count > 0;) {
    count = std::fread(block, 1, sizeof block, file.get());
    content.append(block, count);
    if (content.size() > kMostBytes) {
      throw UserError("Cannot decode " + path + " as an image: it has over " + std::to_string(kMostBytes >> 20) +
                      " MiB. Expected PNG, JPEG, BMP or GIF.");
    }
  }
  if (file && errno == EISDIR && std::ferror(file.get())) {
    throw UserError(path + " is a folder. Give the image files in it.");
  }
  if (!file || std::ferror(file.get())) {
    throw UserError("Cannot read " + path + ": " + std::strerror(errno) + ". Check the path and its permissions.");
  }
  return content;
}

// Colours of four inks are stored upside down by convention; stb_image expects Adobe's mark to say so.
void MarkInks(std::string& file) {
  bool four = false, marked = false;
  for (const JpegSegment& segment : JpegSegments(file)) {
    const bool frame = segment.marker >= 0xc0 && segment.marker <= 0xc2;
    four |= frame && segment.content.size() > 5 && segment.content[5] == 4;
    marked |= segment.marker == 0xee && segment.content.substr(0, 5) == "Adobe";
  }
  constexpr char kMark[] = "\xff\xee\0\x0e" "Adobe\0\x64\0\0\0\0\0";
  if (four && !marked) file.insert(2, kMark, sizeof kMark - 1);
}

// Whether the fourth byte of a BMP's pixels is no alpha: 32 bits a pixel (at 28), not compressed (at 30).
bool AlphaIsFilling(const std::string& file) {
  constexpr char kRaw[] = "\x20\0\0\0\0\0";
  return file.compare(0, 2, "BM") == 0 && file.size() > 54 && file.compare(28, 6, kRaw, 6) == 0;
}

// A file for stb_image, which takes zeros for what a truncated one lacks, and does not say so.
struct Bytes {
  const std::string& content;
  size_t at = 0;
  bool truncated = false;  // whether more was asked for than there is

  static int Read(void* self, char* to, int count) {
    Bytes& bytes = *static_cast<Bytes*>(self);
    const size_t left = bytes.content.size() - bytes.at, taken = std::min<size_t>(count, left);
    // stb_image reads blocks ahead: one that begins before the end may go beyond it.
    bytes.truncated |= left == 0;
    std::memcpy(to, bytes.content.data() + bytes.at, taken);
    bytes.at += taken;
    return static_cast<int>(taken);
  }
  static void Skip(void* self, int count) {
    Bytes& bytes = *static_cast<Bytes*>(self);
    const int64_t to = static_cast<int64_t>(bytes.at) + count;
    bytes.truncated |= to > static_cast<int64_t>(bytes.content.size());
    bytes.at = std::clamp<int64_t>(to, 0, bytes.content.size());
  }
  static int AtEnd(void* self) {
    const Bytes& bytes = *static_cast<Bytes*>(self);
    return bytes.at == bytes.content.size();
  }
};

// A colour over white, to the bit as Pillow's alpha_composite: 7 bits more than a byte, and rounded once.
uint8_t OverWhite(uint32_t color, uint32_t alpha) {
  const uint32_t blended = color * (alpha << 7) + 255 * ((255 - alpha) << 7) + (0x80 << 7);
  return static_cast<uint8_t>((((blended >> 8) + blended) >> 8) >> 7);
}

using Pixels = std::unique_ptr<uint8_t, void (*)(void*)>;

// What the decoder says, which may quote bytes of a damaged file: those that are no text are left out.
std::string WhyNot() {
  std::string reason = stbi_failure_reason();
  reason.erase(std::remove_if(reason.begin(), reason.end(), [](char byte) { return byte < ' ' || byte > '~'; }),
               reason.end());
  return reason;
}

// Red, green, blue and alpha of each pixel; throws std::runtime_error that says why there are none.
Pixels Decode(const std::string& file, int64_t max_pixels, int& width, int& height) {
  constexpr stbi_io_callbacks kReads = {Bytes::Read, Bytes::Skip, Bytes::AtEnd};
  int channels = 0;
  Bytes header{file};
  if (!stbi_info_from_callbacks(&kReads, &header, &width, &height, &channels)) {
    throw std::runtime_error(WhyNot());
  }
  if (static_cast<int64_t>(width) * height > max_pixels) {
    throw std::runtime_error("it is too large: " + std::to_string(width) + " × " + std::to_string(height) + " pixels");
  }
  if (!HuffmanTablesFit(JpegSegments(file))) throw std::runtime_error("its Huffman tables are damaged");
  if (FirstFrameIsSmaller(file)) throw std::runtime_error("its first frame is smaller than the picture");
  Bytes bytes{file};
  Pixels pixels(stbi_load_from_callbacks(&kReads, &bytes, &width, &height, &channels, 4), stbi_image_free);
  if (bytes.truncated) throw std::runtime_error("it is truncated");
  if (!pixels) throw std::runtime_error(WhyNot());
  return pixels;
}

Image OverWhite(const uint8_t* rgba, bool opaque, int width, int height) {
  Image image(width, height);
  for (size_t pixel = 0; pixel < static_cast<size_t>(width) * height; ++pixel, rgba += 4) {
    for (int channel = 0; channel < 3; ++channel) {
      image.pixels[3 * pixel + channel] = OverWhite(rgba[channel], opaque ? 255 : rgba[3]);
    }
  }
  return image;
}

}  // namespace

Image ReadImage(const std::string& path, int64_t max_pixels) {
  std::string file = Content(path);
  MarkInks(file);
  std::string reason;
  try {
    int width = 0, height = 0;
    const Pixels pixels = Decode(file, max_pixels, width, height);
    const Image image = OverWhite(pixels.get(), AlphaIsFilling(file), width, height);
    const int orientation = OrientationOf(file);
    return orientation == 1 ? image : Upright(image, orientation);
  } catch (const std::bad_alloc&) {
    reason = "there is too little memory";
  } catch (const std::exception& error) {
    reason = error.what();
  }
  throw UserError("Cannot decode " + path + " as an image (" + reason +
                  "). Expected PNG, JPEG, BMP or GIF of at most " + std::to_string(max_pixels) +
                  " pixels (--max-pixels), or .npy; convert the file, scale it down or leave it out.");
}

}  // namespace ksm
