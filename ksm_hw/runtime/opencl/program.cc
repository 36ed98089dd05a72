// The cache is a folder: $KSM_HW_OPENCL_CACHE, or ksm-hw/opencl-programs in $XDG_CACHE_HOME or ~/.cache. Its files are
// named by a hash of their key (device, driver, source) and begin with the whole key, so that two keys with one hash
// are told apart, and a hash of the binary behind it: drivers crash on a damaged one. A file of which either is not as
// it should be, or that the driver does not take, is written anew.
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

namespace ksm_hw::opencl {

namespace {

namespace fs = std::filesystem;

constexpr size_t kHashDigits = 16;
constexpr const char* kOptions = "";  // No -cl-fast-relaxed-math: results are compared with PyTorch's.

// A folder that an environment variable names; empty if the variable is, as the XDG specification has it.
fs::path folder_of(const char* variable, const char* below) {
  const char* value = std::getenv(variable);
  return value == nullptr || *value == '\0' ? fs::path() : fs::path(value) / below;
}

fs::path cache_folder() {
  for (fs::path folder : {folder_of("KSM_HW_OPENCL_CACHE", ""), folder_of("XDG_CACHE_HOME", "ksm-hw/opencl-programs"),
                          folder_of("HOME", ".cache/ksm-hw/opencl-programs")})
    if (!folder.empty()) return folder;
  return {};
}

std::string key_of(const Device& device, const std::string& source) {
  return "ksm-hw opencl program 1\n" + device.name + "\n" + device.driver + "\n" + kOptions + "\n" + source + "\n";
}

// FNV-1a: against damage and for names, not against an attacker, who could as well write a whole file.
std::string hash_of(const std::string& text) {
  uint64_t hash = 14695981039346656037ull;
  for (unsigned char character : text) hash = (hash ^ character) * 1099511628211ull;
  std::ostringstream digits;
  digits << std::hex << std::setw(kHashDigits) << std::setfill('0') << hash;
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
  size_t start = key.size() + kHashDigits;
  if (content.size() <= start || content.compare(0, key.size(), key) != 0) return nullptr;
  if (content.compare(key.size(), kHashDigits, hash_of(content.substr(start))) != 0) return nullptr;
  auto* binary = reinterpret_cast<const unsigned char*>(content.data()) + start;
  size_t size = content.size() - start;
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
  std::string binary(size, '\0');
  auto* pointer = reinterpret_cast<unsigned char*>(&binary[0]);
  if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof(pointer), &pointer, nullptr) != CL_SUCCESS) return;
  std::error_code ignored;
  fs::create_directories(file.parent_path(), ignored);
  fs::path temporary = file;
  // Two devices of one kind may write the same file from two threads.
  static std::atomic<int> written{0};
  temporary += "." + std::to_string(getpid()) + "." + std::to_string(written++);
  std::ofstream stream(temporary, std::ios::binary);
  stream << key << hash_of(binary) << binary;
  stream.close();
  std::error_code failed;
  if (stream.good()) fs::rename(temporary, file, failed);
  if (!stream.good() || failed) fs::remove(temporary, ignored);
}

cl_program compiled_program(Device& device, const std::string& source) {
  const char* text = source.data();
  size_t length = source.size();
  cl_int code;
  cl_program program = clCreateProgramWithSource(device.context, 1, &text, &length, &code);
  check(code, "clCreateProgramWithSource");
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
