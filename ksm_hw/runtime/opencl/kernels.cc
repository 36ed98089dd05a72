// The OpenCL kernels of a compiled library, as a TVM module.
//
// The bytes are those that TVM 0.27's generator for OpenCL writes into a library that it exports; little-endian, each
// length 64 bits, a text its length and its characters:
//
//     format ("cl"), number of kernels, for each: its key, its name, the types of its arguments (a byte of code, a byte
//     of bits, 16 bits of lanes), its launch parameters (texts such as "blockIdx.x"), a number for each kind of
//     argument; then the OpenCL C of all
#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstring>
#include <map>

#include "device.h"
#include "program.h"
#include "timer.h"

namespace ksm_hw::opencl {

namespace ffi = tvm::ffi;

namespace {

// How a kernel is called: its arguments, then the extents of its launch axes, as indices into group and local sizes.
struct Signature {
  std::string name;
  std::vector<DLDataType> arguments;
  std::vector<int> axes;  // 0 to 2: groups in x, y, z; 3 to 5: work-items of a group.
};

struct Kernel {
  cl_kernel object = nullptr;
  size_t largest_group = 0;
};

class Reader {
 public:
  explicit Reader(const ffi::Bytes& bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  template <typename T>
  T number() {
    need(sizeof(T));
    T value;
    std::memcpy(&value, at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string text() {
    auto length = number<uint64_t>();
    need(length);
    std::string value(at_, length);
    at_ += length;
    return value;
  }

 private:
  void need(uint64_t bytes) {
    if (bytes > static_cast<uint64_t>(end_ - at_))
      TVM_FFI_THROW(RuntimeError) << "The library's OpenCL kernels are truncated. Copy the artifact again.";
  }
  const char* at_;
  const char* end_;
};

int axis_of(const std::string& parameter) {
  int found = -1;
  for (int axis = 0; axis < 3; ++axis) {
    if (parameter == std::string("blockIdx.") + char('x' + axis)) found = axis;
    if (parameter == std::string("threadIdx.") + char('x' + axis)) found = 3 + axis;
  }
  if (found < 0) TVM_FFI_THROW(RuntimeError) << "OpenCL kernels have no launch parameter '" << parameter << "'.";
  return found;
}

// IEEE 754 half precision, rounded to nearest even.
uint16_t half_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // not a number
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // infinite after rounding
  if (magnitude < 0x38800000) {                                              // subnormal
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof(scaled));
    scaled += 0.5f;  // Its unit in the last place is that of half's subnormals: the addition rounds.
    std::memcpy(&bits, &scaled, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

// Returns the code of clSetKernelArg. Throws for a type that is neither a buffer nor a number.
cl_int set_argument(cl_kernel kernel, cl_uint index, DLDataType type, ffi::AnyView value) {
  auto set = [&](const auto& argument) { return clSetKernelArg(kernel, index, sizeof(argument), &argument); };
  if (type.code == kDLOpaqueHandle) {
    return set(static_cast<cl_mem>(value.cast<void*>()));
  } else if (type.code == kDLFloat && type.lanes == 1 && (type.bits == 16 || type.bits == 32 || type.bits == 64)) {
    auto number = value.cast<double>();
    if (type.bits == 64) return set(number);
    if (type.bits == 32) return set(static_cast<float>(number));
    return set(half_of(static_cast<float>(number)));
  } else if ((type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool) && type.lanes == 1) {
    auto number = value.cast<int64_t>();  // Little-endian: a shorter number is its first bytes.
    return clSetKernelArg(kernel, index, (type.bits + 7) / 8, &number);
  }
  TVM_FFI_THROW(RuntimeError) << "Argument " << index << " has a type that OpenCL kernels do not take as a number: "
                              << "code " << int(type.code) << ", " << int(type.bits) << " bits, " << type.lanes
                              << " lanes.";
}

class KernelModule final : public ffi::ModuleObj {
 public:
  explicit KernelModule(const ffi::Bytes& bytes) : bytes_(bytes.data(), bytes.size()) {
    Reader reader(bytes);
    std::string format = reader.text();
    if (format != "cl")
      TVM_FFI_THROW(RuntimeError) << "The library's OpenCL kernels have the format '" << format << "'; expected 'cl'.";
    for (auto left = reader.number<uint64_t>(); left > 0; --left) read_signature(reader);
    source_ = reader.text();
  }

  ~KernelModule() {
    for (auto& entry : kernels_) clReleaseKernel(entry.second.object);
    for (auto& entry : programs_) clReleaseProgram(entry.second);
  }

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return ffi::Bytes(bytes_); }
  ffi::String InspectSource(const ffi::String&) const final { return source_; }
  bool ImplementsFunction(const ffi::String& name) final { return signatures_.count(name) > 0; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = signatures_.find(name);
    if (found == signatures_.end()) return std::nullopt;
    const Signature* signature = &found->second;
    return ffi::Function::FromPacked(
        [this, signature, alive = ffi::GetRef<ffi::Module>(this)](ffi::PackedArgs arguments, ffi::Any*) {
          launch(*signature, arguments);
        });
  }

 private:
  void read_signature(Reader& reader) {
    std::string key = reader.text();
    Signature signature;
    signature.name = reader.text();
    for (auto left = reader.number<uint64_t>(); left > 0; --left) {
      DLDataType type;
      type.code = reader.number<uint8_t>();
      type.bits = reader.number<uint8_t>();
      type.lanes = reader.number<uint16_t>();
      signature.arguments.push_back(type);
    }
    for (auto left = reader.number<uint64_t>(); left > 0; --left) signature.axes.push_back(axis_of(reader.text()));
    for (auto left = reader.number<uint64_t>(); left > 0; --left) reader.number<int32_t>();
    signatures_.emplace(key, std::move(signature));
  }

  // The kernel on a device, compiled at its first use. The caller holds `Device::launching`.
  const Kernel& kernel(Device& device, const std::string& name) {
    std::lock_guard<std::mutex> lock(building_);
    auto place = std::make_pair(&device, name);
    auto found = kernels_.find(place);
    if (found != kernels_.end()) return found->second;
    cl_program& program = programs_[&device];
    if (program == nullptr) program = build_program(device, source_);
    cl_int code;
    Kernel made;
    made.object = clCreateKernel(program, name.c_str(), &code);
    check(code, "clCreateKernel");
    OPENCL_CHECK(clGetKernelWorkGroupInfo(made.object, device.id, CL_KERNEL_WORK_GROUP_SIZE,
                                          sizeof(made.largest_group), &made.largest_group, nullptr));
    return kernels_.emplace(place, made).first->second;
  }

  void launch(const Signature& signature, ffi::PackedArgs arguments) {
    size_t count = signature.arguments.size();
    if (static_cast<size_t>(arguments.size()) != count + signature.axes.size())
      TVM_FFI_THROW(RuntimeError) << "Kernel " << signature.name << " takes " << count + signature.axes.size()
                                  << " arguments, " << arguments.size() << " given.";
    size_t sizes[6] = {1, 1, 1, 1, 1, 1};
    for (size_t i = 0; i < signature.axes.size(); ++i)
      sizes[signature.axes[i]] = arguments[static_cast<int>(count + i)].cast<int64_t>();
    size_t global[3] = {sizes[0] * sizes[3], sizes[1] * sizes[4], sizes[2] * sizes[5]};
    if (global[0] * global[1] * global[2] == 0) return;  // OpenCL 1.2 refuses to do nothing.

    Device& device = Devices::global()->current();
    std::lock_guard<std::mutex> lock(device.launching);
    const Kernel& compiled = kernel(device, signature.name);
    size_t group = sizes[3] * sizes[4] * sizes[5];
    if (group > compiled.largest_group)
      TVM_FFI_THROW(RuntimeError) << "Kernel " << signature.name << " was compiled for work groups of " << group
                                  << ", and " << device.name << " runs it in groups of at most "
                                  << compiled.largest_group
                                  << ". Compile for a target whose max_threads_per_block is no larger.";
    for (size_t i = 0; i < count; ++i) {
      cl_int code = set_argument(compiled.object, static_cast<cl_uint>(i), signature.arguments[i],
                                 arguments[static_cast<int>(i)]);
      if (code != CL_SUCCESS)
        TVM_FFI_THROW(RuntimeError) << "OpenCL: " << error_name(code) << " from argument " << i << " of kernel "
                                    << signature.name << ".";
    }
    bool timed = !device.timers.empty();
    cl_event event = nullptr;
    cl_int code = clEnqueueNDRangeKernel(device.queue(), compiled.object, 3, nullptr, global, sizes + 3, 0, nullptr,
                                         timed ? &event : nullptr);
    if (code != CL_SUCCESS)
      TVM_FFI_THROW(RuntimeError) << "OpenCL: " << error_name(code) << " from the launch of " << signature.name << " on "
                                  << device.name << ", " << sizes[0] << "×" << sizes[1] << "×" << sizes[2]
                                  << " groups of " << sizes[3] << "×" << sizes[4] << "×" << sizes[5] << " work-items.";
    if (timed) {
      for (EventTimer* timer : device.timers) timer->saw(event);
      clReleaseEvent(event);
    }
  }

  std::string bytes_, source_;
  std::map<std::string, Signature> signatures_;
  std::mutex building_;
  std::map<Device*, cl_program> programs_;
  std::map<std::pair<Device*, std::string>, Kernel> kernels_;
};

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef().def("ffi.Module.load_from_bytes.opencl", [](ffi::Bytes bytes) {
    return ffi::Module(ffi::make_object<KernelModule>(bytes));
  });
}

}  // namespace ksm_hw::opencl
