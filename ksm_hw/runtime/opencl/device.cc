#include "device.h"

#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include <cstdlib>
#include <iostream>

namespace ksm_hw::opencl {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAttrKind;

const char* error_name(cl_int code) {
  switch (code) {
#define NAMED(name) \
  case name:        \
    return #name
    NAMED(CL_DEVICE_NOT_FOUND);
    NAMED(CL_DEVICE_NOT_AVAILABLE);
    NAMED(CL_COMPILER_NOT_AVAILABLE);
    NAMED(CL_MEM_OBJECT_ALLOCATION_FAILURE);
    NAMED(CL_OUT_OF_RESOURCES);
    NAMED(CL_OUT_OF_HOST_MEMORY);
    NAMED(CL_BUILD_PROGRAM_FAILURE);
    NAMED(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST);
    NAMED(CL_INVALID_VALUE);
    NAMED(CL_INVALID_MEM_OBJECT);
    NAMED(CL_INVALID_BINARY);
    NAMED(CL_INVALID_PROGRAM_EXECUTABLE);
    NAMED(CL_INVALID_KERNEL_NAME);
    NAMED(CL_INVALID_KERNEL_ARGS);
    NAMED(CL_INVALID_ARG_INDEX);
    NAMED(CL_INVALID_ARG_VALUE);
    NAMED(CL_INVALID_ARG_SIZE);
    NAMED(CL_INVALID_WORK_GROUP_SIZE);
    NAMED(CL_INVALID_WORK_ITEM_SIZE);
    NAMED(CL_INVALID_BUFFER_SIZE);
    NAMED(CL_INVALID_GLOBAL_WORK_SIZE);
#undef NAMED
    default: {
      static thread_local std::string other;
      other = "error " + std::to_string(code);
      return other.c_str();
    }
  }
}

namespace {

thread_local int current_device = 0;

std::string device_text(cl_device_id device, cl_device_info what) {
  return text_of([=](size_t size, void* value, size_t* length) {
    return clGetDeviceInfo(device, what, size, value, length);
  });
}

template <typename T>
T device_number(cl_device_id device, cl_device_info what) {
  T value{};
  OPENCL_CHECK(clGetDeviceInfo(device, what, sizeof(value), &value, nullptr));
  return value;
}

cl_command_queue new_queue(cl_context context, cl_device_id device, cl_command_queue_properties properties) {
  cl_int code;
  cl_command_queue queue = clCreateCommandQueue(context, device, properties, &code);
  check(code, "clCreateCommandQueue");
  return queue;
}

std::unique_ptr<Device> opened(cl_device_id id) {
  auto device = std::make_unique<Device>();
  cl_int code;
  device->id = id;
  device->name = device_text(id, CL_DEVICE_NAME);
  device->driver = device_text(id, CL_DEVICE_VERSION) + " " + device_text(id, CL_DRIVER_VERSION);
  device->context = clCreateContext(nullptr, 1, &id, nullptr, nullptr, &code);
  check(code, "clCreateContext");
  device->plain_queue = new_queue(device->context, id, 0);
  device->timed_queue = new_queue(device->context, id, CL_QUEUE_PROFILING_ENABLE);
  return device;
}

// Enqueues a copy in its order among the kernels and waits for it, while other threads go on launching.
template <typename Enqueue>
void copy_and_wait(Device& device, Enqueue enqueue) {
  cl_event done;
  {
    std::lock_guard<std::mutex> lock(device.launching);
    check(enqueue(device.queue(), &done), "a copy");
  }
  cl_int code = clWaitForEvents(1, &done);
  clReleaseEvent(done);
  check(code, "a copy");
}

bool no_memory(cl_int code) {
  return code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_RESOURCES || code == CL_OUT_OF_HOST_MEMORY ||
         code == CL_INVALID_BUFFER_SIZE;
}

}  // namespace

// Never destroyed: tensors that outlive the program's end would find no device.
Devices* Devices::global() {
  static auto* devices = new Devices();
  return devices;
}

Devices::Devices() {
  cl_uint count = 0;
  if (clGetPlatformIDs(0, nullptr, &count) != CL_SUCCESS || count == 0) return;
  std::vector<cl_platform_id> platforms(count);
  OPENCL_CHECK(clGetPlatformIDs(count, platforms.data(), nullptr));
  const char* wanted = std::getenv("KSM_HW_OPENCL_PLATFORM");
  // GPUs first, so that device 0 is one wherever there is one.
  for (cl_device_type type : {cl_device_type(CL_DEVICE_TYPE_GPU), cl_device_type(~CL_DEVICE_TYPE_GPU)}) {
    for (cl_platform_id platform : platforms) {
      std::string name = text_of([=](size_t size, void* value, size_t* length) {
        return clGetPlatformInfo(platform, CL_PLATFORM_NAME, size, value, length);
      });
      if (wanted == nullptr || name.find(wanted) != std::string::npos) add_platform(platform, type);
    }
  }
}

void Devices::add_platform(cl_platform_id platform, cl_device_type type) {
  cl_uint count = 0;
  if (clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, nullptr, &count) != CL_SUCCESS) return;
  std::vector<cl_device_id> ids(count);
  if (clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, count, ids.data(), nullptr) != CL_SUCCESS) return;
  for (cl_device_id id : ids) {
    bool is_gpu = device_number<cl_device_type>(id, CL_DEVICE_TYPE) & CL_DEVICE_TYPE_GPU;
    if (is_gpu != (type == CL_DEVICE_TYPE_GPU)) continue;
    try {
      devices_.push_back(opened(id));
    } catch (const ffi::Error& error) {
      // A driver whose device is busy or broken must not hide the others.
      std::cerr << device_text(id, CL_DEVICE_NAME) << " is left out. " << error.message() << std::endl;
    }
  }
}

Device& Devices::get(int number) {
  if (number < 0 || number >= count())
    TVM_FFI_THROW(RuntimeError) << "There is no OpenCL device " << number << ": " << count() << " found. "
                                << "`clinfo -l` lists those that drivers offer.";
  return *devices_[number];
}

Device& Devices::current() { return get(current_device); }

int Devices::count() { return static_cast<int>(devices_.size()); }

void Devices::SetDevice(tvm::Device device) { current_device = device.device_id; }

void Devices::GetAttr(tvm::Device device, DeviceAttrKind kind, ffi::Any* value) {
  bool exists = device.device_id >= 0 && device.device_id < count();
  if (kind == DeviceAttrKind::kExist) {
    *value = static_cast<int64_t>(exists);
    return;
  }
  cl_device_id id = get(device.device_id).id;
  auto number = [id](auto like, cl_device_info what) {
    return static_cast<int64_t>(device_number<decltype(like)>(id, what));
  };
  switch (kind) {
    case DeviceAttrKind::kMaxThreadsPerBlock:
      *value = number(size_t(), CL_DEVICE_MAX_WORK_GROUP_SIZE);
      break;
    case DeviceAttrKind::kWarpSize:
      *value = int64_t(1);  // OpenCL 1.2 knows none, and no schedule may count on one.
      break;
    case DeviceAttrKind::kMaxSharedMemoryPerBlock:
      *value = number(cl_ulong(), CL_DEVICE_LOCAL_MEM_SIZE);
      break;
    case DeviceAttrKind::kComputeVersion:
    case DeviceAttrKind::kApiVersion:
      *value = ffi::String(device_text(id, CL_DEVICE_VERSION));
      break;
    case DeviceAttrKind::kDeviceName:
      *value = ffi::String(device_text(id, CL_DEVICE_NAME));
      break;
    case DeviceAttrKind::kDriverVersion:
      *value = ffi::String(device_text(id, CL_DRIVER_VERSION));
      break;
    case DeviceAttrKind::kMaxClockRate:
      *value = number(cl_uint(), CL_DEVICE_MAX_CLOCK_FREQUENCY) * 1000;  // kHz
      break;
    case DeviceAttrKind::kMultiProcessorCount:
      *value = number(cl_uint(), CL_DEVICE_MAX_COMPUTE_UNITS);
      break;
    case DeviceAttrKind::kMaxThreadDimensions: {
      size_t sizes[3] = {1, 1, 1};
      OPENCL_CHECK(clGetDeviceInfo(id, CL_DEVICE_MAX_WORK_ITEM_SIZES, sizeof(sizes), sizes, nullptr));
      *value = ffi::String("[" + std::to_string(sizes[0]) + ", " + std::to_string(sizes[1]) + ", " +
                           std::to_string(sizes[2]) + "]");
      break;
    }
    case DeviceAttrKind::kL2CacheSizeBytes:
      *value = number(cl_ulong(), CL_DEVICE_GLOBAL_MEM_CACHE_SIZE);
      break;
    case DeviceAttrKind::kTotalGlobalMemory:
      *value = number(cl_ulong(), CL_DEVICE_GLOBAL_MEM_SIZE);
      break;
    default:
      break;  // Unknown to OpenCL: stays None.
  }
}

// Alignment needs no care: OpenCL aligns buffers to its largest vector, 128 bytes, and more.
void* Devices::AllocDataSpace(tvm::Device device, size_t bytes, size_t, DLDataType) {
  Device& on = get(device.device_id);
  cl_int code;
  cl_mem memory = clCreateBuffer(on.context, CL_MEM_READ_WRITE, bytes == 0 ? 1 : bytes, nullptr, &code);
  if (no_memory(code))
    TVM_FFI_THROW(MemoryError) << "Out of memory on " << on.name << ": a buffer of " << bytes
                               << " bytes was asked for, "
                               << device_number<cl_ulong>(on.id, CL_DEVICE_MAX_MEM_ALLOC_SIZE)
                               << " is the largest that it can have, and it has "
                               << device_number<cl_ulong>(on.id, CL_DEVICE_GLOBAL_MEM_SIZE) << " in all.";
  check(code, "clCreateBuffer");
  return memory;
}

// Commands in the queue hold on to their buffers, so nothing needs to be waited for.
void Devices::FreeDataSpace(tvm::Device, void* memory) {
  OPENCL_CHECK(clReleaseMemObject(static_cast<cl_mem>(memory)));
}

// Both queues, because of a timer that another thread starts or stops; at most one of them has work.
void Devices::StreamSync(tvm::Device device, TVMStreamHandle) {
  OPENCL_CHECK(clFinish(get(device.device_id).plain_queue));
  OPENCL_CHECK(clFinish(get(device.device_id).timed_queue));
}

void Devices::CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                             tvm::Device from_device, tvm::Device to_device, DLDataType, TVMStreamHandle) {
  if (bytes == 0) return;
  auto* source = static_cast<cl_mem>(const_cast<void*>(from));
  auto* target = static_cast<cl_mem>(to);
  bool reads = from_device.device_type == kDLOpenCL, writes = to_device.device_type == kDLOpenCL;
  auto read_into = [&](void* memory) {
    copy_and_wait(get(from_device.device_id), [&](cl_command_queue queue, cl_event* done) {
      return clEnqueueReadBuffer(queue, source, CL_FALSE, from_offset, bytes, memory, 0, nullptr, done);
    });
  };
  auto write_from = [&](const void* memory) {
    copy_and_wait(get(to_device.device_id), [&](cl_command_queue queue, cl_event* done) {
      return clEnqueueWriteBuffer(queue, target, CL_FALSE, to_offset, bytes, memory, 0, nullptr, done);
    });
  };
  if (reads && writes && from_device.device_id == to_device.device_id) {
    Device& device = get(to_device.device_id);
    std::lock_guard<std::mutex> lock(device.launching);
    OPENCL_CHECK(
        clEnqueueCopyBuffer(device.queue(), source, target, from_offset, to_offset, bytes, 0, nullptr, nullptr));
  } else if (reads && writes) {
    // Two devices have two contexts, and no buffer in common.
    std::vector<char> memory(bytes);
    read_into(memory.data());
    write_from(memory.data());
  } else if (reads) {
    read_into(static_cast<char*>(to) + to_offset);
  } else {
    write_from(static_cast<const char*>(from) + from_offset);
  }
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def_packed("device_api.opencl", [](ffi::PackedArgs, ffi::Any* result) {
    tvm::runtime::DeviceAPI* devices = Devices::global();
    *result = static_cast<void*>(devices);
  });
}

}  // namespace ksm_hw::opencl
