// The phases of one_pass_step.cuh in two launches, one more where updates are tracked, where parameters are averaged,
// and where a row is planned by its gradients, for devices that cannot hold a whole grid at a time. Nothing is parked:
// every gradient is read twice.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/plan_rows.cuh"
#include "cuda/update.cuh"

namespace gradops::cuda {

template <class Rule>
__global__ void __launch_bounds__(kThreads, 2) measure_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  plan_rows<Rule>(Call(args), shared.scratch);
  measure(Call(args), BlockShare(args.step.table), nothing);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, 2) plan_rows_by_grads_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  decide_by_block(Call(args), shared, /*writes=*/false);
  if (!shared.decision.skip) plan_rows_by_grads<Rule>(Call(args), shared.decision, shared.scratch);
}

// A tracked, compensated or averaged update keeps more registers than two blocks leave it.
template <class Rule, bool kExtras>
__global__ void __launch_bounds__(kThreads, kExtras ? 1 : 2) update_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  const Call call(args);
  decide_by_block(call, shared);
  carry_out<Rule, kExtras>(call, BlockShare(args.step.table), shared, nothing);
}

template <class Rule>
void two_launch_step(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  if (args.step.table.averaged) launch_plan_averages(form, args, stream);
  launch("measure", measure_kernel<Rule>, form.blocks, kSharedStateBytes, false, stream, args);
  if constexpr (kMayPlanByGrads<Rule>) {
    const auto plan = plan_rows_by_grads_kernel<Rule>;
    if (plans_by_grads<Rule>(args.step))
      launch("plan_rows_by_grads", plan, form.blocks, kSharedStateBytes, false, stream, args);
  }
  const auto update = args.step.has_extras() ? update_kernel<Rule, true> : update_kernel<Rule, false>;
  launch("update", update, form.blocks, kSharedStateBytes, false, stream, args);
  if (args.step.policies.track_updates) launch_write_updates(form, args, stream);
}

}  // namespace gradops::cuda
