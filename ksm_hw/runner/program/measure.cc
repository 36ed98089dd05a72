#include "measure.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>

namespace ksm {
namespace {

constexpr int kWarmUpRuns = 3;  // Not counted.

template <typename Function>
double Milliseconds(Function&& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// The value below which this share of the ordered values lies, between two of them where it falls between.
double Percentile(const std::vector<double>& ordered, double share) {
  const double position = share * (ordered.size() - 1);
  const size_t below = static_cast<size_t>(position), above = std::min(below + 1, ordered.size() - 1);
  return ordered[below] + (ordered[above] - ordered[below]) * (position - below);
}

void Print(const std::string& what, std::vector<double> milliseconds) {
  std::sort(milliseconds.begin(), milliseconds.end());
  std::printf("%s: median %.3f ms, p90 %.3f ms, minimum %.3f ms (%zu runs)\n", what.c_str(),
              Percentile(milliseconds, 0.5), Percentile(milliseconds, 0.9), milliseconds.front(), milliseconds.size());
}

}  // namespace

void Measure(Session& session, const Artifact& artifact, const Task& task, int runs) {
  size_t values = 1;
  for (int64_t extent : artifact.input_shape) values *= extent;
  session.Switch(task);
  session.Run(std::vector<float>(values));
  for (int run = 0; run < kWarmUpRuns; ++run) session.RunAgain();
  std::vector<double> inferences;
  for (int run = 0; run < runs; ++run) inferences.push_back(Milliseconds([&] { session.RunAgain(); }));
  Print("inference of " + task.name, inferences);

  // The first switch to a task reads its parameters from the files, and is not counted. An inference lies between two
  // switches, as in use, for else the caches would hold nothing but the weights.
  std::map<std::string, std::vector<double>> switches;
  for (const Task& other : artifact.tasks) session.Switch(other);
  for (int run = 0; run < runs; ++run) {
    for (const Task& other : artifact.tasks) {
      session.RunAgain();
      switches[other.name].push_back(Milliseconds([&] { session.Switch(other); }));
    }
  }
  for (const auto& [name, milliseconds] : switches) Print("switch to " + name, milliseconds);
}

}  // namespace ksm
