// What runner/runner.json, which `ksm-hw compile --runner` writes, says of an artifact.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "preprocessing.h"

namespace ksm {

// An array in a file of the artifact, in C order: ksm_hw/artifact/parameter_file.py.
struct StoredArray {
  std::string file;
  int64_t offset;  // of its first byte
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t values;  // that the file holds; zeros are behind them
  bool halves;  // whether the file holds two of the array's bytes in each of its own, the first in the high half
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
