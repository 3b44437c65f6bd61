// The update alone.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/plan_rows.cuh"
#include "cuda/update.cuh"

namespace gradops::cuda {

template <class Rule>
__global__ void __launch_bounds__(kThreads, 2) plan_rows_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  plan_rows_alone<Rule>(Call(args), reinterpret_cast<SharedState*>(memory)->scratch);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, 2) update_alone_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  const StepArgs& step = args.step;
  const StepInputs inputs = read_inputs(step);
  if (inputs.found_inf) return;
  if (threadIdx.x == 0) {
    const float clip_coef = step.clip_coef != nullptr ? load(step.clip_coef) : 1.0f;
    shared.decision = {inputs.inv_scale, step.policies.clip_value, clip_coef, false};
    shared.gather_squares = false;
  }
  __syncthreads();
  const Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  update_pieces<Rule, false>(call, BlockShare(step.table), shared, nothing);
  for_each_row(step.table, nullptr, 2.0, shared.scratch, [&](int32_t row, const GradStats&) {
    if (call.grad(row) == nullptr) return;
    float* steps = load(&step.table.rows[row].step);
    store(steps, load(steps) + 1.0f);
  });
  move_scalars<Rule>(call, shared.scratch);
}

template <class Rule>
void update_alone(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  launch("plan_rows", plan_rows_kernel<Rule>, form.blocks, kSharedStateBytes, false, stream, args);
  launch("update_alone", update_alone_kernel<Rule>, form.blocks, kSharedStateBytes, false, stream, args);
}

}  // namespace gradops::cuda
