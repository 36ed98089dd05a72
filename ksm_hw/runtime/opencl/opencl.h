// What every file of the OpenCL runtime needs: the API at version 1.2, which all Mali drivers since Bifrost have, and a
// check of its return codes.
#pragma once

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <tvm/ffi/error.h>

#include <string>

namespace ksm_hw::opencl {

// A return code by its name in CL/cl.h, as far as a user may meet it.
const char* error_name(cl_int code);

// A text that one of OpenCL's clGet…Info functions gives, whose arguments but the last three are in `query`.
template <typename Query>
std::string text_of(Query query) {
  size_t length = 0;
  if (query(0, nullptr, &length) != CL_SUCCESS || length == 0) return {};
  std::string text(length, '\0');
  if (query(length, &text[0], nullptr) != CL_SUCCESS) return {};
  while (!text.empty() && (text.back() == '\0' || text.back() == '\n')) text.pop_back();
  return text;
}

}  // namespace ksm_hw::opencl

// Throws what Python sees as a RuntimeError if an OpenCL call fails.
#define OPENCL_CHECK(call)                                                                                       \
  do {                                                                                                           \
    cl_int code_of_call = (call);                                                                                \
    if (code_of_call != CL_SUCCESS)                                                                              \
      TVM_FFI_THROW(RuntimeError) << "OpenCL: " << ::ksm_hw::opencl::error_name(code_of_call) << " from " #call; \
  } while (0)
