#include "stored_arrays.h"

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

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

// The values that codes mean, to the bit as ksm_hw/masks/soft_mask.py computes them.
std::vector<float> Decode(const std::string& codes, const StoredArray& array, size_t count) {
  const auto [low, step] = array.range;
  std::vector<float> values(count);
  for (size_t index = 0; index < count; ++index) {
    unsigned code = static_cast<unsigned char>(codes[array.code_bits == 8 ? index : index / 2]);
    if (array.code_bits == 4) code = index % 2 == 0 ? code >> 4 : code & 15;
    values[index] = low + static_cast<float>(code) * step;
  }
  return values;
}

}  // namespace

ffi::Tensor StoredArrays::Tensor(const StoredArray& array) {
  const auto key = std::make_tuple(array.file, array.offset);
  if (auto found = tensors_.find(key); found != tensors_.end()) return found->second;
  const ffi::Tensor tensor = EmptyTensor(array.shape, array.dtype, device_);
  const size_t count = tensor.numel(), size = ffi::GetDataSize(tensor);
  const std::string path = folder_ + "/" + array.file;
  if (array.code_bits == 0) {
    CopyFromBytes(tensor, ReadBytes(path, array.offset, size).data(), size);
  } else {
    const std::string codes = ReadBytes(path, array.offset, (count * array.code_bits + 7) / 8);
    CopyFromBytes(tensor, Decode(codes, array, count).data(), size);
  }
  return tensors_.emplace(key, tensor).first->second;
}

}  // namespace ksm
