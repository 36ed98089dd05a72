// From an image to the network's input, to the same numbers as ksm_hw/masks/preprocessing.py.
#pragma once

#include <array>
#include <vector>

#include "image.h"

namespace ksm {

struct Preprocessing {
  int image_size;  // height and width of the input in pixels
  int resize_to;   // length in pixels that the shorter side is scaled to, before the centre is cropped
  bool bicubic;    // else bilinear
  std::array<float, 3> mean, std;  // red, green, blue of (x - mean) / std, where x lies in 0…1
};

// float32 [3, image_size, image_size]: scaled, cropped at the centre and normalised.
std::vector<float> Preprocess(const Image& image, const Preprocessing& preprocessing);

}  // namespace ksm
