// What runner/runner.json, which `ksm-hw compile --runner` writes, says of an artifact.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "preprocessing.h"

namespace ksm {

// How a file holds an array: its bytes; two of them in each of its own, the first in the high half; or float32 rounded to
// another type, with int8 by a scale for each part along the first axis (ksm_hw/masks/backbone_rounding.py).
enum class Coding { kPlain, kHalves, kFloat16, kInt8 };

// An array in a file of the artifact, in C order: ksm_hw/artifact/parameter_file.py.
struct StoredArray {
  std::string file;
  int64_t offset;  // of its first byte
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t values;  // that the file holds; zeros are behind them
  Coding coding;
  int64_t scale_offset;  // with kInt8: of the first scale, float32
};

struct Task {
  std::string name;
  std::vector<std::string> classes;
  Preprocessing preprocessing;
  std::string main;                     // function of the library
  std::string rewrite;                  // the one that makes main's weights; empty where none are rewritten
  std::vector<StoredArray> parameters;  // of `rewrite`, or of `main` where there is no `rewrite`
};

struct Artifact {
  std::string folder;
  std::string device;  // "cpu" or "opencl"
  std::string cpu;     // LLVM's name of the CPU that it was compiled for
  int cores;           // that the target has
  std::vector<int> pinned_cores;     // numbers of those that the threads are pinned to; empty where all are alike
  std::vector<int64_t> input_shape;  // [N, 3, H, W]
  int64_t output_classes;            // of the task that has most
  int64_t library_bytes;             // size of model.so
  std::vector<Task> tasks;
};

// Throws UserError where there is no artifact with a runner, a damaged one, or one whose files are being replaced.
Artifact ReadArtifact(const std::string& folder);

// The named task, or the only one where `name` is empty. Throws UserError that names the tasks there are.
const Task& TaskOf(const Artifact& artifact, const std::string& name);

}  // namespace ksm
