// The one header that the wheel leaves out of what its others include. None of what the OpenCL runtime calls uses it.
#pragma once

namespace tvm::support {

template <typename T, typename W>
struct Span {
  Span(T* begin, T* end);
};

}  // namespace tvm::support
