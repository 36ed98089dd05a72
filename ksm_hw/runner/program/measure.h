// Measuring inferences and switches.
#pragma once

#include "artifact.h"
#include "session.h"

namespace ksm {

// Prints median, 90th percentile and minimum of `runs` inferences of a task, and of as many switches to each task.
void Measure(Session& session, const Artifact& artifact, const Task& task, int runs);

}  // namespace ksm
