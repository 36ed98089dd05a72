// Scaling images to the same bytes as Pillow's Image.resize.
#pragma once

#include "image.h"

namespace ksm {

// Scales with a bicubic (a = -0.5) or bilinear filter, which is widened where the image shrinks.
Image Resize(const Image& image, int width, int height, bool bicubic);

}  // namespace ksm
