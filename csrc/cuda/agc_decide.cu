// Between measuring and updating units: the factor of each.
#include "cuda/agc.cuh"
#include "cuda/launch.cuh"

namespace gradops::cuda {

__global__ void __launch_bounds__(kThreads, 2) decide_units_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = reinterpret_cast<UnitState*>(memory)->shared;
  const Call call(args);
  decide_by_block(call, shared, /*writes=*/false);
  if (!shared.decision.skip) decide_units(call, shared.decision.clip_coef);
}

void launch_decide_units(const LaunchForm& form, const SmallArgs& args, Stream stream) {
  launch("decide_units", decide_units_kernel, form.blocks, kSharedStateBytes, false, stream, args);
}

}  // namespace gradops::cuda
