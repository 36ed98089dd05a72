#include "jpeg_segments.h"

namespace ksm {

std::vector<JpegSegment> JpegSegments(std::string_view file) {
  constexpr uint8_t kStartOfScan = 0xda, kEndOfImage = 0xd9;
  std::vector<JpegSegment> segments;
  if (file.substr(0, 2) != "\xff\xd8") return segments;
  for (size_t at = 2; at + 4 <= file.size() && file[at] == '\xff';) {
    const uint8_t marker = file[at + 1];
    if (marker == 0xff) {  // Filling.
      ++at;
      continue;
    }
    const size_t length = static_cast<uint8_t>(file[at + 2]) << 8 | static_cast<uint8_t>(file[at + 3]);
    if (marker == kStartOfScan || marker == kEndOfImage || length < 2 || length > file.size() - at - 2) break;
    segments.push_back({marker, file.substr(at + 4, length - 2)});
    at += 2 + length;
  }
  return segments;
}

}  // namespace ksm
