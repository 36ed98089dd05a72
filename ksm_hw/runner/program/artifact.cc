#include "artifact.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <sstream>

#include "error.h"

namespace ksm {
namespace {

namespace ffi = tvm::ffi;
using Object = ffi::Map<ffi::Any, ffi::Any>;
using List = ffi::Array<ffi::Any>;

ffi::Any Field(const Object& object, const char* name) { return object.at(ffi::String(name)); }

std::string Text(const Object& object, const char* name) { return Field(object, name).cast<ffi::String>(); }

template <typename Number>
std::vector<Number> Numbers(const Object& object, const char* name) {
  std::vector<Number> numbers;
  for (const ffi::Any& number : Field(object, name).cast<List>()) numbers.push_back(number.cast<Number>());
  return numbers;
}

template <size_t count>
std::array<float, count> Floats(const Object& object, const char* name) {
  const std::vector<double> numbers = Numbers<double>(object, name);
  std::array<float, count> floats;
  for (size_t index = 0; index < count; ++index) floats[index] = static_cast<float>(numbers.at(index));
  return floats;
}

Preprocessing ReadPreprocessing(const Object& object) {
  const int image_size = Field(object, "image_size").cast<int>(), resize_to = Field(object, "resize_to").cast<int>();
  if (image_size < 1 || resize_to < image_size) throw std::runtime_error("its images cannot be cropped");
  return {image_size, resize_to, Text(object, "interpolation") == "bicubic", Floats<3>(object, "mean"),
          Floats<3>(object, "std")};
}

Coding ReadCoding(const std::string& name, const std::string& dtype) {
  static const std::map<std::string, Coding> kKnown{
      {"plain", Coding::kPlain}, {"halves", Coding::kHalves}, {"float16", Coding::kFloat16}, {"int8", Coding::kInt8}};
  const auto found = kKnown.find(name);
  if (found == kKnown.end()) throw std::runtime_error("it says that a file holds " + name);
  const char* coded = found->second == Coding::kHalves ? "uint8" : "float32";
  if (found->second != Coding::kPlain && dtype != coded) {
    throw std::runtime_error("it says that a file holds " + name + " of " + dtype);
  }
  return found->second;
}

StoredArray ReadArray(const Object& object) {
  const std::string dtype = Text(object, "dtype");
  ffi::StringToDLDataType(dtype);  // Throws where there is no such type.
  const Coding coding = ReadCoding(Text(object, "coding"), dtype);
  const std::vector<int64_t> shape = Numbers<int64_t>(object, "shape");
  const int64_t values = Field(object, "values").cast<int64_t>();
  if (values < 0 || values > std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>())) {
    throw std::runtime_error("it says that a file holds " + std::to_string(values) + " values of an array");
  }
  if (coding == Coding::kInt8 && (shape.empty() || values == 0 || values % shape[0] != 0)) {
    throw std::runtime_error("it says that a file holds int8 without channels");
  }
  return {Text(object, "file"), Field(object, "offset").cast<int64_t>(), dtype, shape, values, coding,
          Field(object, "scale_offset").cast<int64_t>()};
}

Task ReadTask(const std::string& name, const Object& object) {
  Task task{name, {}, ReadPreprocessing(Field(object, "preprocessing").cast<Object>()), Text(object, "main"), "", {}};
  for (const ffi::Any& label : Field(object, "classes").cast<List>()) task.classes.push_back(label.cast<ffi::String>());
  if (ffi::Any rewrite = Field(object, "rewrite"); rewrite != nullptr) task.rewrite = rewrite.cast<ffi::String>();
  for (const ffi::Any& parameter : Field(object, "parameters").cast<List>()) {
    task.parameters.push_back(ReadArray(parameter.cast<Object>()));
  }
  return task;
}

Artifact ReadObject(const std::string& folder, const Object& object) {
  Artifact artifact{folder,
                    Text(object, "device"),
                    Text(object, "cpu"),
                    Field(object, "cores").cast<int>(),
                    Numbers<int>(object, "pinned_cores"),
                    Numbers<int64_t>(object, "input_shape"),
                    Numbers<int64_t>(object, "output_shape").at(1),
                    Field(object, "library_bytes").cast<int64_t>(),
                    {}};
  // A list, and no object: the order of the tasks stays.
  for (const ffi::Any& entry : Field(object, "tasks").cast<List>()) {
    Object task = entry.cast<Object>();
    artifact.tasks.push_back(ReadTask(Text(task, "task"), task));
  }
  if (artifact.input_shape.size() != 4 || artifact.tasks.empty()) throw std::runtime_error("it describes no task");
  return artifact;
}

}  // namespace

Artifact ReadArtifact(const std::string& folder) {
  std::error_code unknown;
  // ksm_hw/files/staging.py: some files are older ones and some newer, until they all are in their places.
  if (std::filesystem::exists(folder + "/.ksm-hw-ready", unknown)) {
    throw UserError("The files of " + folder + " are being replaced, or a process was killed while it replaced them. " +
                    "Give the command again; if it fails again, `ksm-hw tasks --bundle` with the folder finishes it.");
  }
  const std::string path = folder + "/runner/runner.json";
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw UserError("No artifact with a runner at " + folder + ": " + path +
                    " is missing. Make one with `ksm-hw compile --runner`.");
  }
  std::ostringstream content;
  content << file.rdbuf();
  try {
    ffi::Function parse = ffi::Function::GetGlobalRequired("ffi.json.Parse");
    return ReadObject(folder, parse(ffi::String(content.str())).cast<Object>());
  } catch (const std::exception& error) {
    throw UserError(path + " is damaged (" + error.what() + "). Copy the artifact again.");
  }
}

const Task& TaskOf(const Artifact& artifact, const std::string& name) {
  if (name.empty() && artifact.tasks.size() == 1) return artifact.tasks.front();
  std::string names;
  for (const Task& task : artifact.tasks) {
    if (task.name == name) return task;
    names += (names.empty() ? "" : ", ") + task.name;
  }
  if (name.empty()) throw UserError("The artifact holds several tasks; give one with --task: " + names + ".");
  throw UserError("No task named '" + name + "'. There are: " + names + ".");
}

}  // namespace ksm
