// The first launch of a step that is not one, where parameters are averaged.
#include "cuda/decide.cuh"
#include "cuda/launch.cuh"
#include "cuda/plan_averages.cuh"

namespace gradops::cuda {

__global__ void __launch_bounds__(kThreads, 2) plan_averages_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  plan_averages(Call(args), reinterpret_cast<SharedState*>(memory)->scratch);
}

void launch_plan_averages(const LaunchForm& form, const SmallArgs& args, Stream stream) {
  launch("plan_averages", plan_averages_kernel, form.blocks, kSharedStateBytes, false, stream, args);
}

}  // namespace gradops::cuda
