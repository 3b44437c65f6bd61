// A step with adaptive gradient clipping: three launches, one more where updates are tracked and where parameters are
// averaged.
//
// Bytes of device memory for an element, with P and G the bytes of a stored parameter and gradient:
//     3 P + 2 G + 8 M     with M float32 moments: for Adam's two 36 for float32, 26 for 16-bit parameters and gradients
// since the units' norms are of parameters, too, and nothing may be updated before all gradients are known to be
// finite; what is still in the L2 cache costs nothing the second time. Beside that 16 bytes a segment are written and
// read: two for a piece of 512 elements where units are large, one for a unit where they are small.
#pragma once

#include "cuda/agc.cuh"
#include "cuda/launch.cuh"
#include "cuda/plan_rows.cuh"
#include "cuda/update.cuh"

namespace gradops::cuda {

constexpr int64_t kStagingBytes = int64_t{kWarps} * kPiece * sizeof(float);

static_assert(sizeof(UnitState) <= kSharedStateBytes);

GRADOPS_DEVICE float* staging_place(UnitState& state) {
  return reinterpret_cast<float*>(&state) + kSharedStateBytes / sizeof(float);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, 2) measure_units_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  UnitState& state = *reinterpret_cast<UnitState*>(memory);
  const Call call(args);
  const BlockShare share(args.step.table);
  if (blockIdx.x == 0 && threadIdx.x == 0) store(args.step.unit_work.smallest_coef, float_bits(1.0f));
  plan_rows<Rule>(call, state.shared.scratch);
  const Unscaling unscaling{read_inputs(args.step).inv_scale, args.step.policies.clip_value};
  UnitMeasure units{call, share, unscaling, StagedPiece(staging_place(state))};
  measure(call, share, units);
}

template <class Rule, bool kExtras>
__global__ void __launch_bounds__(kThreads, kExtras ? 1 : 2)
    update_units_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  UnitState& state = *reinterpret_cast<UnitState*>(memory);
  const Call call(args);
  const BlockShare share(args.step.table);
  decide_by_block(call, state.shared, /*writes=*/true);
  clip_before_update(call, state);
  const UnitClip units{call, share, state.clipping};
  carry_out<Rule, kExtras>(call, share, state.shared, units);
}

template <class Rule>
void agc_step(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  const int64_t staged = kSharedStateBytes + kStagingBytes;
  if (args.step.table.averaged) launch_plan_averages(form, args, stream);
  launch("measure_units", measure_units_kernel<Rule>, form.blocks, staged, false, stream, args);
  launch_decide_units(form, args, stream);
  const auto update = args.step.has_extras() ? update_units_kernel<Rule, true> : update_units_kernel<Rule, false>;
  launch("update_units", update, form.blocks, kSharedStateBytes, false, stream, args);
  if (args.step.policies.track_updates) launch_write_updates(form, args, stream);
}

}  // namespace gradops::cuda
