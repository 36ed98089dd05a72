// The cache is a folder: $KSM_HW_OPENCL_CACHE, or ksm-hw/opencl-programs in $XDG_CACHE_HOME or ~/.cache. Its files are
// named by a hash of their key (device, driver, source) and begin with the whole key, so that two keys with one hash
// are told apart. A file that does not begin with its key, or that the driver does not take, is written anew.
#include "program.h"

#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iterator>
#include <sstream>
#include <vector>

namespace ksm_hw::opencl {

namespace {

namespace fs = std::filesystem;

constexpr const char* kOptions = "";  // No -cl-fast-relaxed-math: results are compared with PyTorch's.

fs::path cache_folder() {
  if (const char* folder = std::getenv("KSM_HW_OPENCL_CACHE")) return folder;
  if (const char* folder = std::getenv("XDG_CACHE_HOME")) return fs::path(folder) / "ksm-hw" / "opencl-programs";
  if (const char* home = std::getenv("HOME")) return fs::path(home) / ".cache" / "ksm-hw" / "opencl-programs";
  return {};
}

std::string key_of(const Device& device, const std::string& source) {
  return "ksm-hw opencl program 1\n" + device.name + "\n" + device.driver + "\n" + kOptions + "\n" + source + "\n";
}

// FNV-1a; see the head of this file for what happens when two keys share one.
std::string hash_of(const std::string& text) {
  uint64_t hash = 14695981039346656037ull;
  for (unsigned char character : text) hash = (hash ^ character) * 1099511628211ull;
  std::ostringstream digits;
  digits << std::hex << std::setw(16) << std::setfill('0') << hash;
  return digits.str();
}

std::string build_log(cl_program program, cl_device_id device) {
  return text_of([=](size_t size, void* value, size_t* length) {
    return clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, size, value, length);
  });
}

// The program of a cached binary; null if there is none, or the driver does not take it.
cl_program cached_program(Device& device, const fs::path& file, const std::string& key) {
  std::ifstream stream(file, std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (content.size() <= key.size() || content.compare(0, key.size(), key) != 0) return nullptr;
  auto* binary = reinterpret_cast<const unsigned char*>(content.data()) + key.size();
  size_t size = content.size() - key.size();
  cl_int taken, code;
  cl_program program = clCreateProgramWithBinary(device.context, 1, &device.id, &size, &binary, &taken, &code);
  if (code != CL_SUCCESS) return nullptr;
  if (taken == CL_SUCCESS && clBuildProgram(program, 1, &device.id, kOptions, nullptr, nullptr) == CL_SUCCESS)
    return program;
  clReleaseProgram(program);
  return nullptr;
}

// Writes a program's binary. A disk that is full or read-only costs the next start some seconds and nothing else.
void cache_program(cl_program program, const fs::path& file, const std::string& key) {
  size_t size = 0;
  if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof(size), &size, nullptr) != CL_SUCCESS || size == 0)
    return;
  std::vector<unsigned char> binary(size);
  unsigned char* pointer = binary.data();
  if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof(pointer), &pointer, nullptr) != CL_SUCCESS) return;
  std::error_code ignored;
  fs::create_directories(file.parent_path(), ignored);
  fs::path temporary = file;
  temporary += "." + std::to_string(getpid());
  std::ofstream stream(temporary, std::ios::binary);
  stream.write(key.data(), static_cast<std::streamsize>(key.size()));
  stream.write(reinterpret_cast<const char*>(binary.data()), static_cast<std::streamsize>(size));
  stream.close();
  if (stream.good())
    fs::rename(temporary, file, ignored);
  else
    fs::remove(temporary, ignored);
}

cl_program compiled_program(Device& device, const std::string& source) {
  const char* text = source.data();
  size_t length = source.size();
  cl_int code;
  cl_program program = clCreateProgramWithSource(device.context, 1, &text, &length, &code);
  OPENCL_CHECK(code);
  code = clBuildProgram(program, 1, &device.id, kOptions, nullptr, nullptr);
  if (code != CL_SUCCESS) {
    std::string log = build_log(program, device.id);
    clReleaseProgram(program);
    TVM_FFI_THROW(RuntimeError) << "OpenCL: " << error_name(code) << ": the kernels do not compile for " << device.name
                                << " (" << device.driver << "). The driver's log:\n"
                                << (log.empty() ? "(empty)" : log);
  }
  return program;
}

}  // namespace

ProgramCounts& program_counts() {
  static ProgramCounts counts;
  return counts;
}

cl_program build_program(Device& device, const std::string& source) {
  std::string key = key_of(device, source);
  fs::path folder = cache_folder(), file = folder / (hash_of(key) + ".bin");
  if (!folder.empty()) {
    if (cl_program program = cached_program(device, file, key)) {
      ++program_counts().found;
      return program;
    }
  }
  cl_program program = compiled_program(device, source);
  ++program_counts().compiled;
  if (!folder.empty()) cache_program(program, file, key);
  return program;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  // For tests and for a curious user: how many programs were compiled, and how many were found in the cache.
  tvm::ffi::reflection::GlobalDef()
      .def("ksm_hw.opencl.programs_compiled", []() { return program_counts().compiled.load(); })
      .def("ksm_hw.opencl.programs_found", []() { return program_counts().found.load(); })
      .def("ksm_hw.opencl.device_count", []() { return static_cast<int64_t>(Devices::global()->count()); });
}

}  // namespace ksm_hw::opencl
