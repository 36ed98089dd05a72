// The OpenCL devices of this machine, as TVM's runtime wants to see a kind of device.
#pragma once

#include <tvm/runtime/device_api.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "opencl.h"

namespace ksm_hw::opencl {

class EventTimer;

// One device with its context and queues. Kernels and copies go into one queue in order; while somebody measures, into
// another whose events carry times, because a queue that takes times is slower.
struct Device {
  cl_device_id id = nullptr;
  cl_context context = nullptr;
  cl_command_queue plain_queue = nullptr;
  cl_command_queue timed_queue = nullptr;
  std::string name;
  std::string driver;
  // Held while anything is enqueued: a kernel object holds one set of arguments, and a timer that starts or stops
  // changes the queue.
  std::mutex launching;
  std::vector<EventTimer*> timers;

  // The caller holds `launching`.
  cl_command_queue queue() const { return timers.empty() ? plain_queue : timed_queue; }
};

class Devices final : public tvm::runtime::DeviceAPI {
 public:
  static Devices* global();

  // Throws if there is no such device.
  Device& get(int number);
  // The device that the calling thread has chosen with SetDevice.
  Device& current();
  int count();

  void SetDevice(tvm::Device device) final;
  void GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, tvm::ffi::Any* value) final;
  using DeviceAPI::AllocDataSpace;
  void* AllocDataSpace(tvm::Device device, size_t bytes, size_t alignment, DLDataType type) final;
  void FreeDataSpace(tvm::Device device, void* memory) final;
  void StreamSync(tvm::Device device, TVMStreamHandle stream) final;

 protected:
  using DeviceAPI::CopyDataFromTo;
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_device, tvm::Device to_device, DLDataType type, TVMStreamHandle stream) final;

 private:
  Devices();
  void add_platform(cl_platform_id platform, cl_device_type type);
  std::vector<std::unique_ptr<Device>> devices_;
};

}  // namespace ksm_hw::opencl
