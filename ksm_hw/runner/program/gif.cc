#include "gif.h"

#include <cstdint>

namespace ksm {
namespace {

uint8_t Byte(std::string_view file, size_t at) { return at < file.size() ? static_cast<uint8_t>(file[at]) : 0; }

size_t ColorTableBytes(uint8_t flags) { return flags & 0x80 ? 3 << ((flags & 7) + 1) : 0; }

}  // namespace

bool FirstFrameIsSmaller(std::string_view file) {
  constexpr uint8_t kExtension = 0x21, kFrame = 0x2c;
  constexpr size_t kSizeBytes = 4, kHeaderBytes = 13;
  if (file.substr(0, 4) != "GIF8" || file.size() < kHeaderBytes) return false;
  size_t at = kHeaderBytes + ColorTableBytes(file[10]);
  while (Byte(file, at) == kExtension) {
    at += 2;  // Then come blocks, each with its length in front, and one of length 0.
    while (Byte(file, at) != 0) at += 1 + Byte(file, at);
    ++at;
  }
  // After the frame's own mark and its place comes its size.
  const bool whole = Byte(file, at) == kFrame && at + 5 + kSizeBytes <= file.size();
  return whole && file.substr(at + 5, kSizeBytes) != file.substr(6, kSizeBytes);
}

}  // namespace ksm
