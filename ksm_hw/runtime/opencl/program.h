// From OpenCL C to a program for a device, with the driver's binaries kept on disk: a Mali driver compiles for seconds.
#pragma once

#include <cstdint>
#include <string>

#include "device.h"

namespace ksm_hw::opencl {

// How often this process compiled from source, and how often it found a binary on disk.
struct ProgramCounts {
  std::atomic<int64_t> compiled{0};
  std::atomic<int64_t> found{0};
};
ProgramCounts& program_counts();

// A program that is ready to run on the device; the caller releases it.
// Throws with the compiler's log if the source does not compile.
cl_program build_program(Device& device, const std::string& source);

}  // namespace ksm_hw::opencl
