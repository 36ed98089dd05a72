// ksm-runner: runs an artifact where there is no Python. `ksm-runner --help` says how.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>

#include "artifact.h"
#include "classify.h"
#include "error.h"
#include "measure.h"
#include "options.h"
#include "session.h"

namespace ksm {

constexpr int kDone = 0, kBadInput = 2;  // Exit codes.

namespace {

char illegal_instruction_message[256];

// Code for another CPU dies of an illegal instruction; that is said, for a crash alone would say nothing.
void ExplainIllegalInstructions(const Artifact& artifact) {
  std::snprintf(illegal_instruction_message, sizeof illegal_instruction_message,
                "error: This CPU lacks an instruction that the artifact uses: it was compiled for %s. Compile it for "
                "this CPU.\n",
                artifact.cpu.c_str());
  signal(SIGILL, [](int) {
    const ssize_t written [[maybe_unused]] =
        write(STDERR_FILENO, illegal_instruction_message, std::strlen(illegal_instruction_message));
    _exit(kBadInput);
  });
}

// Prints each input's classes as they come. An input that cannot be read, or whose logits are not
// finite, is said and left out; the exit code tells.
int Run(const Options& options) {
  const Artifact artifact = ReadArtifact(options.artifact);
  if (options.list) {
    for (const Task& task : artifact.tasks) std::printf("%s: %zu classes\n", task.name.c_str(), task.classes.size());
    return kDone;
  }
  const Task& task = TaskOf(artifact, options.task);
  std::unique_ptr<Session> session;  // Loaded for the first input that can be read: bad input costs no time.
  auto loaded = [&]() -> Session& {
    if (!session) {
      ExplainIllegalInstructions(artifact);
      session = std::make_unique<Session>(artifact, options.threads);
      session->Switch(task);
    }
    return *session;
  };
  int exit_code = kDone;
  auto leave_out = [&](const std::string& why) {
    std::fprintf(stderr, "error: %s\n", why.c_str());
    exit_code = kBadInput;
  };
  Array all{{0, static_cast<int64_t>(task.classes.size())}, {}};
  for (const std::string& path : options.inputs) {
    Array input;
    try {
      input = ReadInput(path, artifact, task, options.max_pixels);
    } catch (const UserError& error) {
      leave_out(error.what());
      continue;
    }
    const Array logits = Classify(loaded(), artifact, task, input);
    if (!AllFinite(logits)) {
      leave_out(path + ": task '" + task.name + "' gives logits that are not finite (NaN or infinite), and so no class.");
      continue;
    }
    PrintClasses(path, task, logits, options.top);
    std::fflush(stdout);
    all.shape[0] += logits.shape[0];
    all.values.insert(all.values.end(), logits.values.begin(), logits.values.end());
  }
  if (all.shape[0] > 0 && !options.logits.empty()) WriteNpy(options.logits, all);
  if (options.measure > 0) Measure(loaded(), artifact, task, options.measure);
  return exit_code;
}

}  // namespace
}  // namespace ksm

int main(int count, char** words) {
  try {
    const ksm::Options options = ksm::ParseOptions(count, words);
    if (options.help) {
      std::fputs(ksm::kHelp, stdout);
      return ksm::kDone;
    }
    return ksm::Run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return ksm::kBadInput;
  }
}
