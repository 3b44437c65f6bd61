#include "host/step_backend.h"

#include "cpu/step.h"
#ifdef GRADOPS_WITH_CUDA
#include <c10/core/DeviceGuard.h>

#include <limits>
#include <utility>

#include "cuda/host/step.h"
#endif

namespace gradops {

#ifdef GRADOPS_WITH_CUDA

bool has_backend(at::Device device) { return device.is_cpu() || device.is_cuda(); }

const char* backend_devices() { return "cpu and cuda"; }

std::unique_ptr<StepBackend> make_backend(at::Device device, const UpdateRuleInfo& rule) {
  if (device.is_cuda()) return std::make_unique<CudaStep>(device, rule);
  return std::make_unique<CpuStep>(rule);
}

std::string launch_form(at::Device device, const UpdateRuleInfo& rule) {
  if (!device.is_cuda()) return make_backend(device, rule)->description();
  const c10::DeviceGuard guard(device);
  const cuda::DeviceLimits limits = cuda::device_limits(device.index(), rule.cuda);
  return cuda::choose_form(limits, std::numeric_limits<int32_t>::max()).description;
}

bool allow_one_launch(bool allowed) { return std::exchange(cuda::one_launch_allowed, allowed); }

#else

bool has_backend(at::Device device) { return device.is_cpu(); }

const char* backend_devices() { return "cpu only"; }

std::unique_ptr<StepBackend> make_backend(at::Device, const UpdateRuleInfo& rule) {
  return std::make_unique<CpuStep>(rule);
}

std::string launch_form(at::Device device, const UpdateRuleInfo& rule) {
  return make_backend(device, rule)->description();
}

bool allow_one_launch(bool) { return true; }

#endif

}  // namespace gradops
