// The arrays of an artifact's files, on a device.
#pragma once

#include <tvm/ffi/container/tensor.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "artifact.h"

namespace ksm {

tvm::ffi::Tensor EmptyTensor(const std::vector<int64_t>& shape, const std::string& dtype, DLDevice device);
void CopyFromBytes(const tvm::ffi::Tensor& tensor, const void* data, size_t bytes);
void CopyToBytes(const tvm::ffi::Tensor& tensor, void* data, size_t bytes);

class StoredArrays {
 public:
  StoredArrays(std::string folder, DLDevice device) : folder_(std::move(folder)), device_(device) {}

  // The array as a tensor; what tasks share is read once. Throws UserError where the file is missing or truncated.
  tvm::ffi::Tensor Tensor(const StoredArray& array);

 private:
  const std::string folder_;
  const DLDevice device_;
  // By file, offset and shape.
  std::map<std::tuple<std::string, int64_t, std::vector<int64_t>>, tvm::ffi::Tensor> tensors_;
};

}  // namespace ksm
