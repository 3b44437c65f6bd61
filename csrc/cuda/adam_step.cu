// The update and the loss scale's move, each alone.
#include "cuda/adam_step.cuh"
#include "cuda/launch.cuh"

namespace gradops::cuda {

__global__ void __launch_bounds__(kThreads, 2) plan_rows_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  plan_rows(Call(args), reinterpret_cast<SharedState*>(memory)->scratch);
}

__global__ void __launch_bounds__(kThreads, 2) adam_step_kernel(const SmallArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  const StepArgs& step = args.step;
  const StepInputs inputs = read_inputs(step);
  if (inputs.found_inf) return;
  if (threadIdx.x == 0) {
    const float clip_coef = step.clip_coef != nullptr ? load(step.clip_coef) : 1.0f;
    shared.decision = {inputs.inv_scale, step.rules.clip_value, clip_coef, false};
    shared.gather_squares = false;
  }
  __syncthreads();
  const Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  adam_step<false>(call, BlockShare(step.table), shared, nothing);
  for_each_row(step.table, nullptr, 2.0, shared.scratch, [&](int32_t row, const GradStats&) {
    if (call.grad(row) == nullptr) return;
    float* steps = load(&step.table.rows[row].step);
    store(steps, load(steps) + 1.0f);
  });
}

__global__ void update_loss_scale_kernel(float* scale, int64_t* growth_tracker, const float* found_inf,
                                         const LossScaleRule rule) {
  if (threadIdx.x != 0) return;
  const LossScaleState next = next_loss_scale({load(scale), load(growth_tracker)}, rule, load(found_inf) != 0.0f);
  store(scale, next.scale);
  store(growth_tracker, next.growth_tracker);
}

void adam_step(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  launch("plan_rows", plan_rows_kernel, form.blocks, kSharedStateBytes, false, stream, args);
  launch("adam_step", adam_step_kernel, form.blocks, kSharedStateBytes, false, stream, args);
}

void update_loss_scale(float* scale, int64_t* growth_tracker, const float* found_inf, const LossScaleRule& rule,
                       Stream stream) {
  launch("update_loss_scale", update_loss_scale_kernel, 1, 0, false, stream, scale, growth_tracker, found_inf, rule);
}

}  // namespace gradops::cuda
