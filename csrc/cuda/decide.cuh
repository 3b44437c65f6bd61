// What follows the measuring, in device code: every block comes to the same decision; one block writes what the step
// leaves.
#pragma once

#include "cuda/grad_stats.cuh"

namespace gradops::cuda {

// What a block's threads share, at the beginning of its dynamic shared memory; parked gradients follow.
struct alignas(16) SharedState {
  GradStats scratch[kWarps];
  StepDecision decision;
  bool gather_squares;  // StepPolicies' gathers_squares, in a step
};

// What a block decides, and why.
struct Verdict {
  double grad_norm;
  StepDecision decision;
  bool found_inf;
  bool guarded;
};

GRADOPS_DEVICE Verdict decide_step(const StepPolicies& policies, const StepInputs& inputs, const GradStats& all) {
  const Unscaling unscaling{inputs.inv_scale, policies.clip_value};
  Verdict verdict;
  verdict.grad_norm = all.norm(policies.norm_type, unscaling.clip_value);
  verdict.decision = decide(all, verdict.grad_norm, policies.max_norm, unscaling, inputs.found_inf != 0);
  verdict.found_inf = verdict.decision.skip;
  verdict.guarded = policies.guards && guard_step(verdict.decision, verdict.grad_norm, inputs.guard, policies.guard);
  return verdict;
}

GRADOPS_DEVICE void write_guard(const StepArgs& step, const SpikeGuardState& before, const Verdict& verdict) {
  SpikeGuardState next = before;
  if (step.policies.guards && !verdict.found_inf) {
    next = next_guard_state(before, verdict.grad_norm, verdict.guarded, step.policies.guard);
  }
  float* scalars = step.stats.scalars;
  store(scalars + kGuarded, verdict.guarded ? 1.0f : 0.0f);
  store(scalars + kLrFactorUsed, before.lr_factor);
  store(scalars + kLrFactor, next.lr_factor);
  store(scalars + kUsualNorm, next.usual_norm);
  store(scalars + kDeviation, next.deviation);
  store(step.stats.counters + kNormsSeen, next.norms_seen);
}

GRADOPS_DEVICE void write_scalars(const StepArgs& step, const StepInputs& inputs, const Verdict& verdict) {
  const StatsBuffers& stats = step.stats;
  store(stats.scalars + kGradNorm, static_cast<float>(verdict.grad_norm));
  store(stats.scalars + kClipCoef, verdict.decision.clip_coef);
  store(stats.scalars + kFoundInf, verdict.found_inf ? 1.0f : 0.0f);
  store(stats.scalars + kLossScaleUsed, inputs.loss_scale);
  if (stats.counters == nullptr) return;
  int64_t* counter = stats.counters + (verdict.decision.skip ? kStepsSkipped : kStepsTaken);
  store(counter, load(counter) + 1);
  write_guard(step, inputs.guard, verdict);
  if (!step.policies.moves_loss_scale) return;
  const LossScaleState state{load(stats.scalars + kLossScale), load(stats.counters + kGrowthTracker)};
  const LossScaleState next = next_loss_scale(state, step.policies.loss_scale, verdict.found_inf);
  store(stats.scalars + kLossScale, next.scale);
  store(stats.counters + kGrowthTracker, next.growth_tracker);
}

// Every block merges all chunks, in the same order, and so decides the same; one block writes what the step leaves, in
// the one launch that `writes`.
GRADOPS_DEVICE void decide_by_block(const Call& call, SharedState& shared, bool writes = true) {
  const StepArgs& step = call.step;
  const double p = step.policies.norm_type;
  const GradStats all = merge_by_block(step.work.grad_sums, 0, step.table.chunk_count, p, shared.scratch);
  if (threadIdx.x == 0) {
    const StepInputs inputs = load_struct(step.work.inputs);
    const Verdict verdict = decide_step(step.policies, inputs, all);
    shared.decision = verdict.decision;
    shared.gather_squares = step.policies.gathers_squares;
    if (writes && blockIdx.x == 0) write_scalars(step, inputs, verdict);
  }
  __syncthreads();
}

GRADOPS_DEVICE void write_rows(const Call& call, SharedState& shared) {
  const StepArgs& step = call.step;
  const double p = step.policies.norm_type;
  const bool skip = shared.decision.skip;
  for_each_row(step.table, step.work.grad_sums, p, shared.scratch, [&](int32_t row, const GradStats& stats) {
    store(step.stats.norms + row, static_cast<float>(stats.norm(p, step.policies.clip_value)));
    store(step.stats.abs_max + row, stats.abs_max());
    store(step.stats.nonfinite + row, stats.nonfinite);
    if (step.stats.capped == nullptr) return;
    const bool moves = !skip && call.grad(row) != nullptr;
    store(step.stats.capped + row, moves && load(&step.work.row_rules[row].capped) != 0);
    if (!moves) return;
    float* steps = load(&step.table.rows[row].step);
    store(steps, load(steps) + 1.0f);
  });
}

}  // namespace gradops::cuda
