// The phases of one_pass_step.cu in two launches, three where updates are tracked, for devices that cannot hold a whole
// grid at a time. Nothing is parked: every gradient is read twice.
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

// A tracked or a compensated update keeps more registers than two blocks leave it.
template <bool kExtras>
__global__ void __launch_bounds__(kThreads, kExtras ? 1 : 2) update_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  update_phase<kExtras>(Call(args), BlockShare(args.step.table), shared, nothing);
}

__global__ void __launch_bounds__(kThreads, 2) write_updates_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  const float* scalars = args.step.stats.scalars;
  const bool guarded_skip = args.step.rules.guard.skips && load(scalars + kGuarded) != 0.0f;
  const bool skip = guarded_skip || load(scalars + kFoundInf) != 0.0f;
  write_updates(Call(args), skip, reinterpret_cast<SharedState*>(memory)->scratch);
}

void launch_write_updates(const LaunchForm& form, const SmallArgs& args, Stream stream) {
  launch("write_updates", write_updates_kernel, form.blocks, kSharedStateBytes, false, stream, args);
}

void two_launch_step(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  launch("measure", measure_kernel, form.blocks, kSharedStateBytes, false, stream, args);
  const auto update = args.step.has_extras() ? update_kernel<true> : update_kernel<false>;
  launch("update", update, form.blocks, kSharedStateBytes, false, stream, args);
  if (args.step.rules.track_updates) launch_write_updates(form, args, stream);
}

}  // namespace gradops::cuda
