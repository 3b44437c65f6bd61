// The phases of one_pass_step.cu in two launches, for devices that cannot hold a whole grid at a time. Nothing is
// parked: every gradient is read twice.
#include "cuda/adam_step.cuh"
#include "cuda/launch.cuh"

namespace gradops::cuda {

__global__ void __launch_bounds__(kThreads, 2) measure_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  plan_rows(Call(args), shared.scratch);
  measure(Call(args), BlockShare(args.step.table), nothing);
}

__global__ void __launch_bounds__(kThreads, 2) settle_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  settle(Call(args), BlockShare(args.step.table), shared, nothing);
}

void two_launch_step(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  launch("measure", measure_kernel, form.blocks, kSharedStateBytes, false, stream, args);
  launch("settle", settle_kernel, form.blocks, kSharedStateBytes, false, stream, args);
}

}  // namespace gradops::cuda
