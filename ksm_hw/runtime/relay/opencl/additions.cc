// What ksm-hw needs of OpenCL beyond TVM 0.19: the choice of a platform, and tensors that the graph executor shares.
#include <opencl/opencl_common.h>
#include <tvm/runtime/registry.h>

namespace ksm_hw::opencl {

namespace {

using tvm::runtime::NDArray;
using tvm::runtime::String;
using tvm::runtime::cl::BufferDescriptor;
using tvm::runtime::cl::OpenCLWorkspace;

// The devices of the platforms whose names have a part in common with `name`, in place of all GPUs. To be called before
// the first use of a device; later it does nothing.
void choose_platform(String name) { OpenCLWorkspace::Global()->Init("opencl", "any", name); }

// A second tensor of the same buffer, at an address that the graph executor takes as an input without a copy: it asks
// for the alignment of memory, though a tensor's address is here that of TVM's description of a buffer.
struct Aligned {
  alignas(tvm::runtime::kAllocAlignment) BufferDescriptor description;
  NDArray owner;
  DLManagedTensor tensor;
};

NDArray aligned(NDArray owner) {
  auto* made = new Aligned{*static_cast<BufferDescriptor*>(owner->data), owner, {}};
  made->tensor.dl_tensor = *owner.operator->();
  made->tensor.dl_tensor.data = &made->description;
  made->tensor.manager_ctx = made;
  made->tensor.deleter = [](DLManagedTensor* tensor) { delete static_cast<Aligned*>(tensor->manager_ctx); };
  return NDArray::FromDLPack(&made->tensor);
}

}  // namespace

TVM_REGISTER_GLOBAL("ksm_hw.opencl.choose_platform").set_body_typed(choose_platform);
TVM_REGISTER_GLOBAL("ksm_hw.opencl.aligned").set_body_typed(aligned);

}  // namespace ksm_hw::opencl
