#include "options.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "error.h"

namespace ksm {

const char kHelp[] = R"(Usage: ksm-runner ARTIFACT [OPTIONS] INPUT...

Classify images with a task of a compiled artifact.

INPUT is an image (PNG, JPEG, BMP, GIF), or a .npy file of preprocessed images, float32 [N, 3, H, W].

  --task NAME     a task of the artifact [default: its only one]
  --top N         classes to print of each image [default: 5; 0 prints none]
  --logits FILE   write the logits of all inputs that can be read, float32 [N, classes], as .npy
  --max-pixels N  largest image, width times height [default: 89478485]
  --measure RUNS  measure that many inferences, and as many switches to each task; needs no INPUT
  --threads N     threads of the CPU, at most one a core [default: the target's cores]
  --list          print the artifact's tasks
  --help          print this

Exit code: 0 when done, 2 on bad input; the other inputs are classified all the same.
)";

namespace {

int Number(const std::string& option, const std::string& text, int least) {
  char* end = nullptr;
  errno = 0;
  const long number = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || number < least || number > INT_MAX) {
    throw UserError(option + " takes a number of at least " + std::to_string(least) + ", found '" + text + "'.");
  }
  return static_cast<int>(number);
}

// The logits must not take the place of what is read.
void CheckPlace(const Options& options) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path artifact = fs::weakly_canonical(options.artifact, ignored);
  const fs::path logits = fs::weakly_canonical(fs::absolute(options.logits, ignored), ignored);
  if (std::mismatch(artifact.begin(), artifact.end(), logits.begin(), logits.end()).first == artifact.end()) {
    throw UserError("The logits " + options.logits + " would lie in the artifact. Give another file.");
  }
  for (const std::string& input : options.inputs) {
    if (fs::is_regular_file(options.logits, ignored) && fs::equivalent(input, options.logits, ignored)) {
      throw UserError("The logits would take the place of the input " + input + ". Give another file.");
    }
  }
}

// What runs needs an artifact, and something to run on.
void CheckComplete(const Options& options) {
  if (options.artifact.empty()) throw UserError("No artifact given. ksm-runner --help says how.");
  if (options.inputs.empty() && !options.list && options.measure == 0) {
    throw UserError("No images given. Name image files or .npy files, or give --measure or --list.");
  }
  if (options.inputs.empty() && !options.logits.empty()) {
    throw UserError("--logits writes the logits of inputs, and none is given.");
  }
  if (!options.logits.empty()) CheckPlace(options);
}

}  // namespace

Options ParseOptions(int count, char** words) {
  Options options;
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    auto value = [&]() -> std::string {
      if (index + 1 == count) throw UserError(word + " lacks its value. ksm-runner --help says what it takes.");
      return words[++index];
    };
    if (word == "--help") {
      options.help = true;
      return options;
    } else if (word == "--list") {
      options.list = true;
    } else if (word == "--task") {
      options.task = value();
    } else if (word == "--logits") {
      options.logits = value();
    } else if (word == "--top") {
      options.top = Number(word, value(), 0);
    } else if (word == "--threads") {
      options.threads = Number(word, value(), 1);
    } else if (word == "--max-pixels") {
      options.max_pixels = Number(word, value(), 1);
    } else if (word == "--measure") {
      options.measure = Number(word, value(), 1);
    } else if (word.size() > 1 && word[0] == '-') {
      throw UserError("There is no option " + word + ". ksm-runner --help names all.");
    } else if (options.artifact.empty()) {
      options.artifact = word;
    } else {
      options.inputs.push_back(word);
    }
  }
  CheckComplete(options);
  return options;
}

}  // namespace ksm
