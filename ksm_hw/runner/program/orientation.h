// What the cameras' notes in an image file say of it, which stb_image passes over.
#pragma once

#include <cstdint>
#include <string>

#include "image.h"

namespace ksm {

// How a JPEG's or PNG's pixels are to be turned, 1 to 8 as in EXIF; 1 where the file does not say, or is damaged.
int OrientationOf(const std::string& file);

// The image, turned as an orientation says.
Image Upright(const Image& image, int orientation);

}  // namespace ksm
