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

// Throws what Python sees as a RuntimeError if an OpenCL call failed.
inline void check(cl_int code, const char* call) {
  if (code != CL_SUCCESS) TVM_FFI_THROW(RuntimeError) << "OpenCL: " << error_name(code) << " from " << call;
}

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

// check() of an OpenCL call that returns its code.
#define OPENCL_CHECK(call) ::ksm_hw::opencl::check((call), #call)
