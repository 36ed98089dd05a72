// The segments of a JPEG file: all of it but the pixels.
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

// Those up to where the file ends or is damaged; none of a file that is no JPEG.
std::vector<JpegSegment> JpegSegments(std::string_view file);

// Whether no Huffman table has more codes than there are bytes, or than its segment holds. stb_image before 2.28 writes
// beyond its own tables otherwise.
bool HuffmanTablesFit(const std::vector<JpegSegment>& segments);

}  // namespace ksm
