// Times that the device itself takes: from the start of the first kernel to the end of the last.
#pragma once

// TVM's timer.h wants tensor.h, which wants headers that the wheel lacks, and uses nothing of it: leave it out.
#define TVM_RUNTIME_TENSOR_H_
#include <tvm/ffi/function.h>
#include <tvm/runtime/device_api.h>
#include <tvm/runtime/timer.h>

#include "device.h"

namespace ksm_hw::opencl {

class EventTimer final : public tvm::runtime::TimerNode {
 public:
  explicit EventTimer(Device* device) : device_(device) {}
  ~EventTimer() final;
  void Start() final;
  void Stop() final;
  int64_t SyncAndGetElapsedNanos() final;

  // Tells of a kernel that was enqueued; the caller holds `Device::launching`.
  void saw(cl_event kernel);

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("ksm_hw.opencl.EventTimer", EventTimer, tvm::runtime::TimerNode);

 private:
  Device* device_;
  cl_event first_ = nullptr;
  cl_event last_ = nullptr;
};

}  // namespace ksm_hw::opencl
