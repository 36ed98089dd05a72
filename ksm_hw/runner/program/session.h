// An artifact loaded on a device, switched between its tasks and run.
#pragma once

#include <memory>
#include <vector>

#include "artifact.h"

namespace ksm {

class Session {
 public:
  // Loads the library, to run on so many threads of the CPU, at most one a core; with 0 on as many as the target has
  // cores. Throws UserError where the library, or the runtime of its device, is missing or damaged.
  Session(const Artifact& artifact, int threads);
  ~Session();

  // Makes a task the current one, and waits until its weights are there. Its parameters are read from the files at its
  // first switch and stay. Throws UserError where a file is missing or truncated.
  void Switch(const Task& task);

  // float32 [N, 3, H, W] -> logits, float32 [N, classes of the artifact]; both flat, in C order.
  std::vector<float> Run(const std::vector<float>& images);

  // Runs on the images that the last Run brought to the device, and waits for the end.
  void RunAgain();

 private:
  struct Device;  // TVM's part: its headers are large, and session.cc alone reads them.
  const std::unique_ptr<Device> device_;
};

}  // namespace ksm
