// From input files to logits and the most probable classes.
#pragma once

#include <string>
#include <vector>

#include "artifact.h"
#include "npy.h"
#include "session.h"

namespace ksm {

// The images of a file, preprocessed for a task: float32 [M, 3, H, W]. Throws UserError where it holds none that
// fit, numbers that are not finite, or an image of more than `max_pixels`.
Array ReadInput(const std::string& path, const Artifact& artifact, const Task& task, int64_t max_pixels);

// The current task's logits of any number of images, float32 [M, classes of the task].
Array Classify(Session& session, const Artifact& artifact, const Task& task, const Array& images);

// Prints the most probable classes of each image, most probable first.
void PrintClasses(const std::string& input, const Task& task, const Array& logits, int top);

}  // namespace ksm
