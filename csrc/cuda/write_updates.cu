// The last launch of a step that is not one, where updates are tracked.
#include "cuda/decide.cuh"
#include "cuda/launch.cuh"
#include "cuda/write_updates.cuh"

namespace gradops::cuda {

__global__ void __launch_bounds__(kThreads, 2) write_updates_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  const float* scalars = args.step.stats.scalars;
  const bool guarded_skip = args.step.policies.guard.skips && load(scalars + kGuarded) != 0.0f;
  const bool skip = guarded_skip || load(scalars + kFoundInf) != 0.0f;
  write_updates(Call(args), skip, reinterpret_cast<SharedState*>(memory)->scratch);
}

void launch_write_updates(const LaunchForm& form, const SmallArgs& args, Stream stream) {
  launch("write_updates", write_updates_kernel, form.blocks, kSharedStateBytes, false, stream, args);
}

}  // namespace gradops::cuda
