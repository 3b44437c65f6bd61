#include "step_backend.h"

#include "cpu_step.h"

namespace gradops {

bool has_backend(at::Device device) { return device.is_cpu(); }

const char* backend_devices() { return "cpu only"; }

std::unique_ptr<StepBackend> make_backend(at::Device) { return std::make_unique<CpuStep>(); }

}  // namespace gradops
