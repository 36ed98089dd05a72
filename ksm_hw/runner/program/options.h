// The command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image.h"

namespace ksm {

struct Options {
  std::string artifact;
  std::vector<std::string> inputs;  // images or .npy files
  std::string task;                 // empty: the artifact's only one
  std::string logits;               // .npy file to write; empty: none
  int top = 5;                      // classes to print
  int threads = 0;                  // 0: the target's cores, if there are as many here
  int64_t max_pixels = kMostPixels;  // of an image
  int measure = 0;                  // inferences to measure
  bool list = false, help = false;
};

extern const char kHelp[];

// Throws UserError where an option is unknown, lacks its value, or has one that makes no sense.
Options ParseOptions(int count, char** words);

}  // namespace ksm
