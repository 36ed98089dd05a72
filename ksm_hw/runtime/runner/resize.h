// Scaling images to the same bytes as Pillow's Image.resize.
#pragma once

#include "image.h"

namespace ksm {

// Scales with a bicubic (a = -0.5) or bilinear filter that is widened where the image shrinks, so that no pixel is lost.
Image Resize(const Image& image, int width, int height, bool bicubic);

}  // namespace ksm
