// The phases after the grid barrier, in device code: every block comes to the same decision, then updates its chunks.
#pragma once

#include "cuda/grad_stats.cuh"

namespace gradops::cuda {

// What a block's threads share, at the beginning of its dynamic shared memory; parked gradients follow.
struct alignas(16) SharedState {
  GradStats scratch[kWarps];
  StepDecision decision;
};

GRADOPS_DEVICE void write_scalars(const StepArgs& step, const StepInputs& inputs, double grad_norm,
                                  const StepDecision& decision) {
  const StatsBuffers& stats = step.stats;
  store(stats.scalars + kGradNorm, static_cast<float>(grad_norm));
  store(stats.scalars + kClipCoef, decision.clip_coef);
  store(stats.scalars + kFoundInf, decision.skip ? 1.0f : 0.0f);
  store(stats.scalars + kLossScaleUsed, inputs.loss_scale);
  int64_t* counter = stats.counters + (decision.skip ? kStepsSkipped : kStepsTaken);
  store(counter, load(counter) + 1);
  if (!step.rules.moves_loss_scale) return;
  const LossScaleState state{load(stats.scalars + kLossScale), load(stats.counters + kGrowthTracker)};
  const LossScaleState next = next_loss_scale(state, step.rules.loss_scale, decision.skip);
  store(stats.scalars + kLossScale, next.scale);
  store(stats.counters + kGrowthTracker, next.growth_tracker);
}

// Every block merges all chunks, in the same order, and so decides the same; one block writes what the step leaves.
GRADOPS_DEVICE void decide_by_block(const Call& call, SharedState& shared) {
  const StepArgs& step = call.step;
  const double p = step.rules.norm_type;
  const GradStats all = merge_by_block(step.work.grad_sums, 0, step.table.chunk_count, p, shared.scratch);
  if (threadIdx.x == 0) {
    const StepInputs inputs = load_struct(step.work.inputs);
    const GradRule rule{inputs.inv_scale, step.rules.clip_value};
    const double grad_norm = all.norm(p, rule.clip_value);
    shared.decision = decide(all, grad_norm, step.rules.max_norm, rule, inputs.found_inf != 0);
    if (blockIdx.x == 0) write_scalars(step, inputs, grad_norm, shared.decision);
  }
  __syncthreads();
}

GRADOPS_DEVICE void write_rows(const Call& call, SharedState& shared) {
  const StepArgs& step = call.step;
  const double p = step.rules.norm_type;
  const bool skip = shared.decision.skip;
  for_each_row(step.table, step.work.grad_sums, p, shared.scratch, [&](int32_t row, const GradStats& stats) {
    store(step.stats.norms + row, static_cast<float>(stats.norm(p, step.rules.clip_value)));
    store(step.stats.abs_max + row, stats.abs_max());
    store(step.stats.nonfinite + row, stats.nonfinite);
    const bool moves = !skip && call.grad(row) != nullptr;
    store(step.stats.capped + row, moves && load(&step.work.row_rules[row].capped) != 0);
    if (!moves) return;
    float* steps = load(&step.table.rows[row].step);
    store(steps, load(steps) + 1.0f);
  });
}

// Eight elements of each of a row's tensors, from load to store.
template <WeightDecay kDecay, bool kAmsgrad>
GRADOPS_DEVICE void update_values(float (&param)[8], const float (&grad)[8], float (&exp_avg)[8],
                                  float (&exp_avg_sq)[8], float (&max_exp_avg_sq)[8], const StepDecision& decision,
                                  const AdamRule& rule) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    AdamElement e{param[i], exp_avg[i], exp_avg_sq[i], kAmsgrad ? max_exp_avg_sq[i] : 0.0f};
    e = adam_update<kDecay, kAmsgrad>(e, grad[i], decision, rule);
    param[i] = e.param;
    exp_avg[i] = e.exp_avg;
    exp_avg_sq[i] = e.exp_avg_sq;
    if constexpr (kAmsgrad) max_exp_avg_sq[i] = e.max_exp_avg_sq;
  }
}

// One half of a piece. Leaves in `param` what reading back would give.
GRADOPS_DEVICE void update_half(const PieceAt& piece, int half, const Lanes& lanes, CachePolicy policy,
                                const float (&grad)[8], const StepDecision& decision, const RowRule& rule,
                                float (&param)[8]) {
  const Stretch params = piece.of(&TensorRow::param);
  const Stretch exp_avgs = piece.of(&TensorRow::exp_avg);
  const Stretch exp_avg_sqs = piece.of(&TensorRow::exp_avg_sq);
  float exp_avg[8], exp_avg_sq[8], max_exp_avg_sq[8];
  load_piece<1>(params, half, lanes, policy, param);
  load_piece<1>(exp_avgs, half, lanes, policy, exp_avg);
  load_piece<1>(exp_avg_sqs, half, lanes, policy, exp_avg_sq);
  const bool decoupled = rule.decay == WeightDecay::kDecoupled;
  if (rule.amsgrad) {
    const Stretch max_exp_avg_sqs = piece.of(&TensorRow::max_exp_avg_sq);
    load_piece<1>(max_exp_avg_sqs, half, lanes, policy, max_exp_avg_sq);
    const auto update = [&]<WeightDecay kDecay>() {
      update_values<kDecay, true>(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, decision, rule.adam);
    };
    decoupled ? update.template operator()<WeightDecay::kDecoupled>() : update.template operator()<WeightDecay::kL2>();
    store_half(max_exp_avg_sqs, half, lanes, policy, max_exp_avg_sq);
  } else if (decoupled) {
    update_values<WeightDecay::kDecoupled, false>(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, decision,
                                                  rule.adam);
  } else {
    update_values<WeightDecay::kL2, false>(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, decision, rule.adam);
  }
  store_half(params, half, lanes, policy, param);
  store_half(exp_avgs, half, lanes, policy, exp_avg);
  store_half(exp_avg_sqs, half, lanes, policy, exp_avg_sq);
#pragma unroll
  for (int i = 0; i < 8; ++i) param[i] = as_stored(param[i], params.view.dtype);
}

// The statistics of a piece of parameters, from what the update kept of it or, rarely, by reading it back.
GRADOPS_DEVICE ChunkStats param_piece_stats(const PieceAt& piece, const Lanes& lanes, const LaneSums& sums) {
  const ChunkStats stats = sums_of_warp(sums, lanes);
  if (is_plain(stats, NormType::kL2)) return stats;
  float param[16];
  load_piece<2>(piece.of(&TensorRow::param), 0, lanes, CachePolicy::used_once(), param);
  return piece_stats(param, piece.n, lanes, GradRule{}, Norm{NormType::kL2, 2.0f});
}

// The block's pieces, backwards: gradients that were read last are the likeliest to be in the L2 cache still, and parked
// ones can wait.
template <class Parked>
GRADOPS_DEVICE void adam_step(const Call& call, const BlockShare& share, const StepDecision& decision,
                              bool gather_squares, const Parked& parking) {
  const CachePolicy policy = CachePolicy::used_once();
#pragma unroll 1
  for (int32_t slot = share.slots() - 1; slot >= 0; --slot) {
    const PieceAt piece(call.step.table, share.piece(slot));
    const void* data = call.grad(piece.row_index);
    if (data == nullptr) continue;
    const Lanes lanes = piece.lanes();
    const RowRule rule = load_struct(call.step.work.row_rules + piece.row_index);
    LaneSums sums;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float grad[8], param[8];
      if (parking.holds(slot)) {
        parking.take(slot, half, grad);
      } else {
        load_piece<1>(piece.grad(data), half, lanes, policy, grad);
      }
      update_half(piece, half, lanes, policy, grad, decision, rule, param);
      if (gather_squares) sums.add<NormType::kL2>(param, 2 * half, piece.n, lanes, GradRule{});
    }
    if (!gather_squares) continue;
    const ChunkStats stats = param_piece_stats(piece, lanes, sums);
    if (threadIdx.x % 32 == 0) store_struct(call.step.work.piece_stats + share.piece(slot), stats);
  }
}

// All that follows the grid barrier.
template <class Parked>
GRADOPS_DEVICE void settle(const Call& call, const BlockShare& share, SharedState& shared, const Parked& parking) {
  const StepArgs& step = call.step;
  decide_by_block(call, shared);
  const StepDecision decision = shared.decision;
  write_rows(call, shared);
  if (decision.skip) return;
  const bool caps = !std::isinf(step.rules.relative_step.cap);
  adam_step(call, share, decision, caps, parking);
  if (!caps) return;
  merge_pieces(step.table, share, step.work.piece_stats, step.work.param_sums, 2.0,
               [&](int32_t row) { return call.grad(row) == nullptr; });
}

}  // namespace gradops::cuda
