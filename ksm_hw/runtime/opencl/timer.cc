#include "timer.h"

#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>

namespace ksm_hw::opencl {

namespace {

cl_ulong time_of(cl_event event, cl_profiling_info what) {
  cl_ulong nanoseconds = 0;
  OPENCL_CHECK(clGetEventProfilingInfo(event, what, sizeof(nanoseconds), &nanoseconds, nullptr));
  return nanoseconds;
}

}  // namespace

EventTimer::~EventTimer() {
  Stop();
  for (cl_event event : {first_, last_})
    if (event != nullptr) clReleaseEvent(event);
}

void EventTimer::Start() {
  std::lock_guard<std::mutex> lock(device_->launching);
  // Two queues know nothing of each other's order: what is in one ends before the other begins.
  if (device_->timers.empty()) OPENCL_CHECK(clFinish(device_->plain_queue));
  device_->timers.push_back(this);
}

void EventTimer::Stop() {
  std::lock_guard<std::mutex> lock(device_->launching);
  auto place = std::find(device_->timers.begin(), device_->timers.end(), this);
  if (place == device_->timers.end()) return;
  if (device_->timers.size() == 1) clFinish(device_->timed_queue);
  device_->timers.erase(place);
}

int64_t EventTimer::SyncAndGetElapsedNanos() {
  if (first_ == nullptr) return 0;
  OPENCL_CHECK(clWaitForEvents(1, &last_));
  return static_cast<int64_t>(time_of(last_, CL_PROFILING_COMMAND_END) - time_of(first_, CL_PROFILING_COMMAND_START));
}

void EventTimer::saw(cl_event kernel) {
  clRetainEvent(kernel);
  if (first_ == nullptr) {
    first_ = kernel;
    clRetainEvent(kernel);
  }
  if (last_ != nullptr) clReleaseEvent(last_);
  last_ = kernel;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("runtime.timer.opencl", [](DLDevice device) {
    auto timer = tvm::ffi::make_object<EventTimer>(&Devices::global()->get(device.device_id));
    return tvm::runtime::Timer(timer);
  });
}

}  // namespace ksm_hw::opencl
