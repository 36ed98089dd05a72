#include "stored_arrays.h"

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <fstream>

#include "error.h"

namespace ksm {

namespace ffi = tvm::ffi;

ffi::Tensor EmptyTensor(const std::vector<int64_t>& shape, const std::string& dtype, DLDevice device) {
  static const ffi::Function allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  return allocate(ffi::Shape(shape), ffi::StringToDLDataType(dtype), device, nullptr).cast<ffi::Tensor>();
}

void CopyFromBytes(const ffi::Tensor& tensor, const void* data, size_t bytes) {
  static const ffi::Function copy = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
  copy(tensor, const_cast<void*>(data), static_cast<int64_t>(bytes));
}

void CopyToBytes(const ffi::Tensor& tensor, void* data, size_t bytes) {
  static const ffi::Function copy = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
  copy(tensor, data, static_cast<int64_t>(bytes));
}

namespace {

std::string ReadBytes(const std::string& path, int64_t offset, size_t count) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError("The artifact lacks " + path + ". It was copied incompletely; copy it again.");
  std::string bytes(count, '\0');
  file.seekg(offset).read(bytes.data(), static_cast<std::streamsize>(count));
  if (!file) throw UserError(path + " is truncated. It was copied incompletely; copy the artifact again.");
  return bytes;
}

// Each half of a byte as a byte.
std::string Unpack(const std::string& halves, size_t count) {
  std::string bytes(count, '\0');
  for (size_t index = 0; index < count; ++index) {
    const unsigned char both = halves[index / 2];
    bytes[index] = static_cast<char>(index % 2 == 0 ? both >> 4 : both & 15);
  }
  return bytes;
}

}  // namespace

ffi::Tensor StoredArrays::Tensor(const StoredArray& array) {
  const auto key = std::make_tuple(array.file, array.offset, array.shape);
  if (auto found = tensors_.find(key); found != tensors_.end()) return found->second;
  const ffi::Tensor tensor = EmptyTensor(array.shape, array.dtype, device_);
  const size_t size = ffi::GetDataSize(tensor);
  const size_t held = size / std::max<int64_t>(tensor.numel(), 1) * array.values;
  std::string bytes = ReadBytes(folder_ + "/" + array.file, array.offset, array.halves ? (held + 1) / 2 : held);
  if (array.halves) bytes = Unpack(bytes, held);
  bytes.resize(size, '\0');
  CopyFromBytes(tensor, bytes.data(), size);
  return tensors_.emplace(key, tensor).first->second;
}

}  // namespace ksm
