#include "session.h"

#include <dlfcn.h>
#include <sched.h>
#include <tvm/ffi/any.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <filesystem>

#include "error.h"
#include "stored_arrays.h"

namespace ksm {
namespace {

namespace ffi = tvm::ffi;

const char kFloat32[] = "float32";  // What the images are, and what the logits must be.

// TVM is called through its registered functions alone: they cross libraries as plain C, so that the program may be
// compiled with another C++ standard library than TVM was.
template <typename... Arguments>
ffi::Any Call(const char* name, Arguments&&... arguments) {
  return ffi::Function::GetGlobalRequired(name)(std::forward<Arguments>(arguments)...);
}

DLDevice DeviceOf(const Artifact& artifact) {
  if (artifact.device == "cpu") return {kDLCPU, 0};
  const std::string library = "libtvm_runtime_" + artifact.device + ".so";
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw UserError("The artifact is for " + artifact.device + ", whose runtime cannot be loaded (" + dlerror() +
                    "). Put " + library + " beside ksm-runner.");
  }
  return {kDLOpenCL, 0};
}

// The cores that the artifact's threads are pinned to, those of them that this process may use; all that it may use
// where that is none.
std::vector<int> UsableCores(const Artifact& artifact) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {0};
  std::vector<int> pinned, all;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed)) continue;
    all.push_back(core);
    const std::vector<int>& wanted = artifact.pinned_cores;
    if (std::find(wanted.begin(), wanted.end(), core) != wanted.end()) pinned.push_back(core);
  }
  return pinned.empty() ? all : pinned;
}

// Lets TVM's loops run on so many threads, which may use every one of the cores; the calling thread is one of them. Left
// alone TVM takes half of an x86-64 machine's cores, and the first of them, whatever else runs there.
void UseThreads(int threads, const std::vector<int>& cores) {
  constexpr int kSharedCores = -3;  // TVM's kSpecifyThreadShareAllCore.
  ffi::Array<ffi::String> names;
  for (int core : cores) names.push_back(ffi::String(std::to_string(core)));
  Call("runtime.config_threadpool", kSharedCores, threads, names);
}

// The system's loader dies of a library that is truncated.
void CheckLibrary(const std::string& path, int64_t bytes) {
  std::error_code missing;
  const auto found = std::filesystem::file_size(path, missing);
  if (missing) throw UserError("The artifact lacks " + path + ". It was copied incompletely; copy it again.");
  if (static_cast<int64_t>(found) != bytes) {
    throw UserError(path + " has " + std::to_string(found) + " bytes; expected " + std::to_string(bytes) +
                    ". It was copied incompletely; copy the artifact again.");
  }
}

// TVM's virtual machine, a module.
ffi::Any LoadMachine(const Artifact& artifact, DLDevice device) {
  const std::string path = artifact.folder + "/model.so";
  CheckLibrary(path, artifact.library_bytes);
  try {
    ffi::Any library = Call("ffi.ModuleLoadFromFile", ffi::String(path));
    ffi::Any load = Call("ffi.ModuleGetFunction", library, ffi::String("vm_load_executable"), true);
    ffi::Any machine = load.cast<ffi::Function>()();
    ffi::Any initialise = Call("ffi.ModuleGetFunction", machine, ffi::String("vm_initialization"), true);
    constexpr int kPooled = 2;
    if (device.device_type == kDLCPU) {
      initialise.cast<ffi::Function>()(static_cast<int>(kDLCPU), 0, kPooled);
    } else {
      // The last device is the CPU, for what runs beside the kernels.
      initialise.cast<ffi::Function>()(static_cast<int>(device.device_type), device.device_id, kPooled,
                                       static_cast<int>(kDLCPU), 0, kPooled);
    }
    return machine;
  } catch (const std::exception& error) {
    throw UserError("Cannot load " + path + " (" + error.what() +
                    "). It is damaged or for another machine; copy the artifact again, or compile it for this.");
  }
}

}  // namespace

struct Session::Device {
  const DLDevice device;
  const ffi::Any machine;
  StoredArrays arrays;
  const ffi::Tensor images;
  ffi::Tensor logits;
  ffi::Function main;
  ffi::Array<ffi::Tensor> weights;

  ffi::Function FunctionOf(const std::string& name) const {
    return Call("ffi.ModuleGetFunction", machine, ffi::String(name), true).cast<ffi::Function>();
  }
  void Synchronise() const { Call("runtime.Device_StreamSync", device, 0); }

  static std::unique_ptr<Device> Load(const Artifact& artifact, int threads) {
    const std::vector<int> cores = UsableCores(artifact);
    UseThreads(threads > 0 ? threads : std::min(artifact.cores, static_cast<int>(cores.size())), cores);
    const DLDevice device = DeviceOf(artifact);
    const ffi::Tensor images = EmptyTensor(artifact.input_shape, kFloat32, device);
    const ffi::Tensor logits = EmptyTensor({artifact.input_shape[0], artifact.output_classes}, kFloat32, device);
    return std::unique_ptr<Device>(new Device{
        device, LoadMachine(artifact, device), StoredArrays(artifact.folder, device), images, logits, {}, {}});
  }
};

Session::Session(const Artifact& artifact, int threads) : device_(Device::Load(artifact, threads)) {}

Session::~Session() = default;

void Session::Switch(const Task& task) {
  ffi::Array<ffi::Tensor> weights;
  for (const StoredArray& array : task.parameters) weights.push_back(device_->arrays.Tensor(array));
  if (!task.rewrite.empty()) {
    weights = device_->FunctionOf(task.rewrite)(weights).cast<ffi::Array<ffi::Tensor>>();
    device_->Synchronise();
  }
  device_->main = device_->FunctionOf(task.main);
  device_->weights = weights;
}

std::vector<float> Session::Run(const std::vector<float>& images) {
  CopyFromBytes(device_->images, images.data(), images.size() * sizeof(float));
  RunAgain();
  std::vector<float> logits(device_->logits.numel());
  CopyToBytes(device_->logits, logits.data(), logits.size() * sizeof(float));
  return logits;
}

void Session::RunAgain() {
  std::vector<ffi::AnyView> arguments{device_->images};
  for (const ffi::Tensor& weight : device_->weights) arguments.emplace_back(weight);
  ffi::Any result;
  device_->main.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
  device_->Synchronise();
  const ffi::Tensor logits = result.cast<ffi::Tensor>();
  if (const std::string dtype = ffi::DLDataTypeToString(logits.dtype()); dtype != kFloat32) {
    throw UserError("The artifact gives logits of " + dtype + "; ksm-runner reads " + kFloat32 +
                    ". Its library and its runner are of different versions of ksm-hw; compile the bundle again.");
  }
  device_->logits = logits;
}

}  // namespace ksm
