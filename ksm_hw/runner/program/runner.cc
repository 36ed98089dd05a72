// ksm-runner: runs an artifact where there is no Python. `ksm-runner --help` says how.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "artifact.h"
#include "classify.h"
#include "error.h"
#include "measure.h"
#include "options.h"
#include "session.h"

namespace ksm {
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
    _exit(2);
  });
}

void Run(const Options& options) {
  const Artifact artifact = ReadArtifact(options.artifact);
  if (options.list) {
    for (const Task& task : artifact.tasks) std::printf("%s: %zu classes\n", task.name.c_str(), task.classes.size());
    return;
  }
  const Task& task = TaskOf(artifact, options.task);
  std::vector<Array> inputs;  // All are read before the library is loaded: bad input costs no time.
  for (const std::string& path : options.inputs) inputs.push_back(ReadInput(path, artifact, task));
  ExplainIllegalInstructions(artifact);
  Session session(artifact, options.threads);
  session.Switch(task);
  Array all{{0, static_cast<int64_t>(task.classes.size())}, {}};
  for (size_t index = 0; index < inputs.size(); ++index) {
    const Array logits = Classify(session, artifact, task, inputs[index]);
    PrintClasses(options.inputs[index], task, logits, options.top);
    all.shape[0] += logits.shape[0];
    all.values.insert(all.values.end(), logits.values.begin(), logits.values.end());
  }
  if (!options.logits.empty()) WriteNpy(options.logits, all);
  if (options.measure > 0) Measure(session, artifact, task, options.measure);
}

}  // namespace
}  // namespace ksm

int main(int count, char** words) {
  try {
    const ksm::Options options = ksm::ParseOptions(count, words);
    if (options.help) {
      std::fputs(ksm::kHelp, stdout);
    } else {
      ksm::Run(options);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
