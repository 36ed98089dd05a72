#include "classify.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "error.h"
#include "image.h"

namespace ksm {

Array ReadInput(const std::string& path, const Artifact& artifact, const Task& task, int64_t max_pixels) {
  const std::string suffix = ".npy";
  if (path.size() < suffix.size() || path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0) {
    const int64_t size = task.preprocessing.image_size;
    return {{1, 3, size, size}, Preprocess(ReadImage(path, max_pixels), task.preprocessing)};
  }
  Array images = ReadNpy(path);
  std::vector<int64_t> expected = artifact.input_shape;
  expected[0] = images.shape.empty() ? 0 : images.shape[0];
  if (images.shape != expected || images.values.empty()) {
    expected = artifact.input_shape;
    throw UserError(path + " holds float32 " + ShapeText(images.shape) + "; expected any number of images " +
                    ShapeText({expected.begin() + 1, expected.end()}) + ", preprocessed for the task.");
  }
  if (!AllFinite(images)) throw UserError(path + " holds numbers that are not finite (NaN or infinite).");
  return images;
}

Array Classify(Session& session, const Artifact& artifact, const Task& task, const Array& images) {
  const int64_t count = images.shape[0], batch = artifact.input_shape[0];
  const size_t image_values = images.values.size() / count, classes = task.classes.size();
  Array logits{{count, static_cast<int64_t>(classes)}, {}};
  for (int64_t begin = 0; begin < count; begin += batch) {
    const int64_t filled = std::min(batch, count - begin);
    std::vector<float> values(images.values.begin() + begin * image_values,
                              images.values.begin() + (begin + filled) * image_values);
    values.resize(batch * image_values);  // A last batch is filled with zeros.
    const std::vector<float> all = session.Run(values);
    for (int64_t image = 0; image < filled; ++image) {
      const auto row = all.begin() + image * artifact.output_classes;
      logits.values.insert(logits.values.end(), row, row + classes);
    }
  }
  return logits;
}

void PrintClasses(const std::string& input, const Task& task, const Array& logits, int top) {
  const size_t classes = task.classes.size(), shown = std::min<size_t>(top, classes);
  for (int64_t image = 0; shown != 0 && image < logits.shape[0]; ++image) {
    const float* row = &logits.values[image * classes];
    const float largest = *std::max_element(row, row + classes);
    double sum = 0.0;
    for (size_t index = 0; index < classes; ++index) sum += std::exp(row[index] - largest);
    std::vector<size_t> order(classes);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [row](size_t one, size_t other) { return row[one] > row[other]; });
    std::printf("%s", input.c_str());
    if (logits.shape[0] > 1) std::printf(" [%lld]", static_cast<long long>(image));
    std::printf(" (%s)\n", task.name.c_str());
    for (size_t rank = 0; rank < shown; ++rank) {
      const size_t index = order[rank];
      std::printf("  %5.1f%%  %s\n", 100.0 * std::exp(row[index] - largest) / sum, task.classes[index].c_str());
    }
  }
}

}  // namespace ksm
