// Arrays in NumPy's .npy files: float32, C order, little-endian.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ksm {

struct Array {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Whether no value is NaN or infinite.
bool AllFinite(const Array& array);

// Throws UserError where the file is missing, truncated, no .npy file, or of another dtype or order.
Array ReadNpy(const std::string& path);

// Throws UserError where the file cannot be written; then none is left behind.
void WriteNpy(const std::string& path, const Array& array);

// A shape as Python writes a list: [1, 3, 96, 96].
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace ksm
