// In place of csrc/host/step_backend.cpp, csrc/cpu/ops.cpp and csrc/cuda/launch.cu: parameters on the CPU are stepped
// by the CUDA backend, whose kernels the emulator runs on a GPU of a few multiprocessors.
#include <cstdlib>
#include <utility>

#include "cuda/host/step.h"
#include "emulator.h"

namespace gradops {

namespace cuda {
namespace {

// GRADOPS_EMULATED_FORM=two_launches makes it a GPU without cooperative launches.
DeviceLimits usual_limits() {
  const char* form = std::getenv("GRADOPS_EMULATED_FORM");
  DeviceLimits limits;
  limits.multiprocessors = 3;
  limits.shared_bytes = shared_bytes(2);
  limits.cooperative = form == nullptr || std::string(form) != "two_launches";
  limits.large_params = true;
  return limits;
}

DeviceLimits limits_now = usual_limits();

}  // namespace

DeviceLimits device_limits(int, const RuleKernels* kernels) {
  DeviceLimits limits = limits_now;
  limits.resident_blocks = kernels == nullptr ? 0 : 1;
  return limits;
}

bool capturing(Stream) { return false; }

}  // namespace cuda

bool has_backend(at::Device device) { return device.is_cpu(); }

const char* backend_devices() { return "cpu only"; }

std::unique_ptr<StepBackend> make_backend(at::Device device, const UpdateRuleInfo& rule) {
  return std::make_unique<CudaStep>(device, rule);
}

std::string launch_form(at::Device, const UpdateRuleInfo& rule) {
  return cuda::choose_form(cuda::device_limits(0, rule.cuda), 1000).description;
}

bool allow_one_launch(bool allowed) { return std::exchange(cuda::one_launch_allowed, allowed); }

// While nothing is watched, a fault is raised.
[[maybe_unused]] const bool kTrusts = (emu::trust_addresses(), true);

}  // namespace gradops

#pragma GCC visibility push(default)
extern "C" {

// The GPU that plans made from now on find; no multiprocessors: the usual one.
void emulated_gpu(int multiprocessors, int shared_slots, int cooperative, int large_params) {
  using namespace gradops::cuda;
  limits_now = usual_limits();
  if (multiprocessors == 0) return;
  limits_now.multiprocessors = multiprocessors;
  limits_now.shared_bytes = shared_bytes(shared_slots);
  limits_now.cooperative = cooperative != 0;
  limits_now.large_params = large_params != 0;
}
}
#pragma GCC visibility pop
