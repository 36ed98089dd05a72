#include "jpeg_segments.h"

namespace ksm {
namespace {

uint8_t Byte(std::string_view bytes, size_t at) { return at < bytes.size() ? static_cast<uint8_t>(bytes[at]) : 0; }

// Where the next marker begins, after pixels or filling; the end where there is none.
size_t NextMarker(std::string_view file, size_t at) {
  for (; at + 1 < file.size(); ++at) {
    const uint8_t marker = Byte(file, at + 1);
    const bool within_pixels = marker == 0 || (marker >= 0xd0 && marker <= 0xd7);
    if (Byte(file, at) == 0xff && marker != 0xff && !within_pixels) return at;
  }
  return file.size();
}

}  // namespace

std::vector<JpegSegment> JpegSegments(std::string_view file) {
  constexpr uint8_t kEndOfImage = 0xd9;
  std::vector<JpegSegment> segments;
  if (file.substr(0, 2) != "\xff\xd8") return segments;
  for (size_t at = NextMarker(file, 2); at + 4 <= file.size(); at = NextMarker(file, at)) {
    const uint8_t marker = Byte(file, at + 1);
    const size_t length = Byte(file, at + 2) << 8 | Byte(file, at + 3);
    if (marker == kEndOfImage || length < 2 || length > file.size() - at - 2) break;
    segments.push_back({marker, file.substr(at + 4, length - 2)});
    at += 2 + length;
  }
  return segments;
}

bool HuffmanTablesFit(const std::vector<JpegSegment>& segments) {
  constexpr uint8_t kTables = 0xc4;
  constexpr size_t kLengths = 16, kMostCodes = 256;
  for (const JpegSegment& segment : segments) {
    for (size_t at = 0; segment.marker == kTables && at < segment.content.size();) {
      size_t codes = 0;  // After a byte that names the table come the numbers of its codes of each length.
      for (size_t length = 1; length <= kLengths; ++length) codes += Byte(segment.content, at + length);
      at += 1 + kLengths + codes;
      if (codes > kMostCodes || at > segment.content.size()) return false;
    }
  }
  return true;
}

}  // namespace ksm
