// The segments of a JPEG file before its pixels.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ksm {

struct JpegSegment {
  uint8_t marker;  // such as 0xe1, APP1
  std::string_view content;
};

// Those up to the pixels, or up to where the file is damaged; none of a file that is no JPEG.
std::vector<JpegSegment> JpegSegments(std::string_view file);

}  // namespace ksm
