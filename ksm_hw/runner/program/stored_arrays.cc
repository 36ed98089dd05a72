#include "stored_arrays.h"

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cmath>
#include <cstring>
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

// The bytes of values as float32.
std::string BytesOf(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

float FromFloat16(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const float digits = static_cast<float>(half & 1023) / 1024 + (exponent > 0 ? 1 : 0);
  const float size = std::ldexp(digits, std::max(exponent, 1) - 15);
  return half >> 15 ? -size : size;
}

std::string FromFloat16(const std::string& bytes) {
  std::vector<float> values(bytes.size() / 2);
  for (size_t index = 0; index < values.size(); ++index) {
    uint16_t half;
    std::memcpy(&half, bytes.data() + 2 * index, sizeof half);
    values[index] = FromFloat16(half);
  }
  return BytesOf(values);
}

constexpr float kLargestScale = 0x1p120f;  // Where float has products with 128 still.

// A scale for each part along the first axis; their product with integers of 8 bits has no rounding.
std::string FromInt8(const std::string& path, const std::string& bytes, const std::string& scales) {
  const size_t channels = scales.size() / sizeof(float), each = bytes.size() / channels;
  std::vector<float> values(bytes.size());
  for (size_t channel = 0; channel < channels; ++channel) {
    float scale;
    std::memcpy(&scale, scales.data() + channel * sizeof scale, sizeof scale);
    if (!(scale > 0 && scale < kLargestScale)) {
      throw UserError(path + " is damaged: a scale of its weights is no number above 0. Copy the artifact again.");
    }
    for (size_t index = channel * each; index < (channel + 1) * each; ++index) {
      values[index] = static_cast<float>(static_cast<int8_t>(bytes[index])) * scale;
    }
  }
  return BytesOf(values);
}

// What a file of the artifact holds of an array, decoded; `count` values of so many bytes each.
std::string Decoded(const std::string& path, const StoredArray& array, size_t count, size_t bytes_of_value) {
  const auto read = [&](size_t bytes) { return ReadBytes(path, array.offset, bytes); };
  switch (array.coding) {
    case Coding::kHalves:
      return Unpack(read((count + 1) / 2), count);
    case Coding::kFloat16:
      return FromFloat16(read(2 * count));
    case Coding::kInt8:
      return FromInt8(path, read(count), ReadBytes(path, array.scale_offset, array.shape[0] * sizeof(float)));
    default:
      return read(count * bytes_of_value);
  }
}

}  // namespace

ffi::Tensor StoredArrays::Tensor(const StoredArray& array) {
  const auto key = std::make_tuple(array.file, array.offset, array.shape);
  if (auto found = tensors_.find(key); found != tensors_.end()) return found->second;
  const ffi::Tensor tensor = EmptyTensor(array.shape, array.dtype, device_);
  const size_t size = ffi::GetDataSize(tensor);
  const size_t bytes_of_value = size / std::max<int64_t>(tensor.numel(), 1);
  std::string bytes = Decoded(folder_ + "/" + array.file, array, array.values, bytes_of_value);
  bytes.resize(size, '\0');
  CopyFromBytes(tensor, bytes.data(), size);
  return tensors_.emplace(key, tensor).first->second;
}

}  // namespace ksm
