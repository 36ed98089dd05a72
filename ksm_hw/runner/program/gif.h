// What a GIF file says of its first frame.
#pragma once

#include <string_view>

namespace ksm {

// Whether the first frame is smaller than the picture: decoders do not agree on what is around it. False for a file
// that is no GIF.
bool FirstFrameIsSmaller(std::string_view file);

}  // namespace ksm
