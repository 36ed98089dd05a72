#include "npy.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>

#include "error.h"

namespace ksm {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicBytes = 6;

uint32_t LittleEndian(const std::string& content, size_t offset, size_t bytes) {
  uint32_t number = 0;
  for (size_t byte = 0; byte < bytes; ++byte) {
    number |= static_cast<uint32_t>(static_cast<unsigned char>(content.at(offset + byte))) << (8 * byte);
  }
  return number;
}

// The numbers of the header's shape, such as (1, 3, 96, 96).
std::vector<int64_t> ShapeOf(const std::string& header) {
  const size_t begin = header.find('(', header.find("'shape'")), end = header.find(')', begin);
  std::vector<int64_t> shape;
  std::istringstream numbers(header.substr(begin + 1, end - begin - 1));
  for (std::string number; std::getline(numbers, number, ',');) {
    if (number.find_first_not_of(' ') != std::string::npos) shape.push_back(std::stoll(number));
  }
  return shape;
}

// The format: numpy.lib.format. After the magic come two bytes of version, and the length of the header in 2 bytes
// (version 1) or 4.
Array Parse(const std::string& content) {
  if (content.compare(0, kMagicBytes, kMagic) != 0) throw std::runtime_error("it is no .npy file");
  const size_t length_bytes = content.at(kMagicBytes) == 1 ? 2 : 4;
  const size_t begin = kMagicBytes + 2 + length_bytes;
  const size_t data = begin + LittleEndian(content, kMagicBytes + 2, length_bytes);
  if (data > content.size()) throw std::runtime_error("it is truncated");
  const std::string header = content.substr(begin, data - begin);
  if (header.find("'<f4'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos) {
    throw std::runtime_error("it holds " + header.substr(0, header.find_last_of('}') + 1));
  }
  Array array{ShapeOf(header), {}};
  size_t count = 1;
  for (int64_t extent : array.shape) {
    if (extent < 0 || __builtin_mul_overflow(count, static_cast<size_t>(extent), &count)) count = SIZE_MAX;
  }
  if (count != (content.size() - data) / sizeof(float) || (content.size() - data) % sizeof(float) != 0) {
    throw std::runtime_error("its shape " + ShapeText(array.shape) + " does not go with its size; it is truncated");
  }
  array.values.resize(count);
  std::memcpy(array.values.data(), content.data() + data, count * sizeof(float));
  return array;
}

}  // namespace

bool AllFinite(const Array& array) {
  return std::all_of(array.values.begin(), array.values.end(), [](float value) { return std::isfinite(value); });
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

Array ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError("No array at " + path + ". Check the path.");
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  try {
    return Parse(content);
  } catch (const std::exception& error) {
    throw UserError("Cannot read " + path + " (" + error.what() +
                    "). Expected float32 in C order, as numpy.save writes it.");
  }
}

void WriteNpy(const std::string& path, const Array& array) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (int64_t extent : array.shape) header += std::to_string(extent) + ", ";
  header += "), }";
  constexpr size_t kPrefix = kMagicBytes + 4;
  header.append(63 - (kPrefix + header.size()) % 64, ' ').push_back('\n');
  // A file is replaced whole or not at all, also through a link. A device or a pipe is written into and never removed.
  namespace fs = std::filesystem;
  std::error_code error;
  const bool there = fs::exists(path, error), in_place = there && !fs::is_regular_file(path, error);
  const fs::path target = there && !in_place ? fs::canonical(path, error) : fs::path(path);
  const fs::path written = in_place ? target : fs::path(target.string() + ".incomplete");
  errno = 0;
  std::ofstream file(written, std::ios::binary);
  file.write(kMagic, kMagicBytes).write("\x01\x00", 2);
  file.put(static_cast<char>(header.size() & 255)).put(static_cast<char>(header.size() >> 8));
  file << header;
  file.write(reinterpret_cast<const char*>(array.values.data()), array.values.size() * sizeof(float));
  file.close();
  if (!file) {
    error = std::error_code(errno, std::generic_category());
  } else if (!in_place) {
    fs::rename(written, target, error);
  }
  if (!file || error) {
    std::error_code ignored;
    if (!in_place) fs::remove(written, ignored);
    throw UserError("Cannot write " + path + ": " + error.message() + ". Free space or give another path.");
  }
}

}  // namespace ksm
