// The phases after the grid barrier, in device code: every block comes to the same decision, then updates its chunks.
#pragma once

#include "cuda/grad_stats.cuh"
#include "cuda/updated_tensors.cuh"

namespace gradops::cuda {

// What a block's threads share, at the beginning of its dynamic shared memory; parked gradients follow.
struct alignas(16) SharedState {
  GradStats scratch[kWarps];
  StepDecision decision;
  bool gather_squares;  // for the relative step cap of the next step, or because updates are tracked
};

// What a block decides, and why.
struct Verdict {
  double grad_norm;
  StepDecision decision;
  bool found_inf;
  bool guarded;
};

GRADOPS_DEVICE Verdict decide_step(const StepRules& rules, const StepInputs& inputs, const GradStats& all) {
  const GradRule rule{inputs.inv_scale, rules.clip_value};
  Verdict verdict;
  verdict.grad_norm = all.norm(rules.norm_type, rule.clip_value);
  verdict.decision = decide(all, verdict.grad_norm, rules.max_norm, rule, inputs.found_inf != 0);
  verdict.found_inf = verdict.decision.skip;
  verdict.guarded = rules.guards && guard_step(verdict.decision, verdict.grad_norm, inputs.guard, rules.guard);
  return verdict;
}

GRADOPS_DEVICE void write_guard(const StepArgs& step, const SpikeGuardState& before, const Verdict& verdict) {
  SpikeGuardState next = before;
  if (step.rules.guards && !verdict.found_inf) {
    next = next_guard_state(before, verdict.grad_norm, verdict.guarded, step.rules.guard);
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
  if (!step.rules.moves_loss_scale) return;
  const LossScaleState state{load(stats.scalars + kLossScale), load(stats.counters + kGrowthTracker)};
  const LossScaleState next = next_loss_scale(state, step.rules.loss_scale, verdict.found_inf);
  store(stats.scalars + kLossScale, next.scale);
  store(stats.counters + kGrowthTracker, next.growth_tracker);
}

// Every block merges all chunks, in the same order, and so decides the same; one block writes what the step leaves, in
// the one launch that `writes`.
GRADOPS_DEVICE void decide_by_block(const Call& call, SharedState& shared, bool writes = true) {
  const StepArgs& step = call.step;
  const double p = step.rules.norm_type;
  const GradStats all = merge_by_block(step.work.grad_sums, 0, step.table.chunk_count, p, shared.scratch);
  if (threadIdx.x == 0) {
    const StepInputs inputs = load_struct(step.work.inputs);
    const Verdict verdict = decide_step(step.rules, inputs, all);
    shared.decision = verdict.decision;
    shared.gather_squares = !std::isinf(step.rules.relative_step.cap) || step.rules.track_updates;
    if (writes && blockIdx.x == 0) write_scalars(step, inputs, verdict);
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
    if (step.stats.capped == nullptr) return;
    const bool moves = !skip && call.grad(row) != nullptr;
    store(step.stats.capped + row, moves && load(&step.work.row_rules[row].capped) != 0);
    if (!moves) return;
    float* steps = load(&step.table.rows[row].step);
    store(steps, load(steps) + 1.0f);
  });
}

template <WeightDecay kDecay, bool kAmsgrad, bool kExtras>
GRADOPS_DEVICE void update_vectors(const UpdatedTensors<kExtras>& of, int half, const Lanes& lanes,
                                   const float (&grad)[8], const StepDecision& decision, const AdamRule& rule,
                                   Updated& updated) {
  float (&param)[8] = updated.param;
  float exp_avg[8], exp_avg_sq[8], max_exp_avg_sq[8] = {};
  load_half(of.param, half, lanes, param);
  load_half(of.exp_avg, half, lanes, exp_avg);
  load_half(of.exp_avg_sq, half, lanes, exp_avg_sq);
  if constexpr (kAmsgrad) load_half(of.max_exp_avg_sq, half, lanes, max_exp_avg_sq);
#pragma unroll
  for (int i = 0; i < 8; ++i) updated.moved[i] = param[i];
  if (of.compensated) add_compensation(of.compensation(), half, lanes, param);
  float left[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const AdamElement before{param[i], exp_avg[i], exp_avg_sq[i], max_exp_avg_sq[i]};
    const AdamElement after = adam_update<kDecay, kAmsgrad>(before, grad[i], decision, rule);
    param[i] = as_stored(after.param, of.param.view.dtype);
    left[i] = left_by_rounding(after.param, param[i]);
    updated.moved[i] = param[i] - updated.moved[i];
    exp_avg[i] = after.exp_avg;
    exp_avg_sq[i] = after.exp_avg_sq;
    max_exp_avg_sq[i] = after.max_exp_avg_sq;
  }
  store_half(of.param, half, lanes, param);
  if (of.compensated) store_compensation(of.compensation(), half, lanes, left);
  store_half(of.exp_avg, half, lanes, exp_avg);
  store_half(of.exp_avg_sq, half, lanes, exp_avg_sq);
  if constexpr (kAmsgrad) store_half(of.max_exp_avg_sq, half, lanes, max_exp_avg_sq);
}

GRADOPS_DEVICE AdamElement update_element(const AdamElement& e, float grad, const StepDecision& decision,
                                          const RowRule& rule) {
  constexpr WeightDecay kL2 = WeightDecay::kL2, kDecoupled = WeightDecay::kDecoupled;
  if (rule.decay == kDecoupled) {
    return rule.amsgrad ? adam_update<kDecoupled, true>(e, grad, decision, rule.adam)
                        : adam_update<kDecoupled, false>(e, grad, decision, rule.adam);
  }
  return rule.amsgrad ? adam_update<kL2, true>(e, grad, decision, rule.adam)
                      : adam_update<kL2, false>(e, grad, decision, rule.adam);
}

// One element after the other, for what is strided, misaligned or an odd tail.
template <bool kExtras>
GRADOPS_DEVICE void update_elements(const UpdatedTensors<kExtras>& of, int half, const Lanes& lanes,
                                    const float (&grad)[8], const StepDecision& decision, const RowRule& rule,
                                    Updated& updated) {
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const int32_t element = lanes.element(2 * half + i / 4) + i % 4;
    if (element >= of.param.n) continue;
    const int64_t param_at = of.param.place(element), exp_avg_at = of.exp_avg.place(element);
    const int64_t exp_avg_sq_at = of.exp_avg_sq.place(element);
    const int64_t max_exp_avg_sq_at = rule.amsgrad ? of.max_exp_avg_sq.place(element) : 0;
    AdamElement e{of.param.load_at(param_at), of.exp_avg.load_at(exp_avg_at), of.exp_avg_sq.load_at(exp_avg_sq_at),
                  rule.amsgrad ? of.max_exp_avg_sq.load_at(max_exp_avg_sq_at) : 0.0f};
    const float before = e.param;
    if (of.compensated) e.param += of.compensation().load_at(of.compensation().place(element));
    float value = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) value = i == j ? grad[j] : value;
    e = update_element(e, value, decision, rule);
    const float stored = as_stored(e.param, of.param.view.dtype);
    of.param.store_at(param_at, e.param);
    if (of.compensated) {
      of.compensation().store_at(of.compensation().place(element), left_by_rounding(e.param, stored));
    }
    of.exp_avg.store_at(exp_avg_at, e.exp_avg);
    of.exp_avg_sq.store_at(exp_avg_sq_at, e.exp_avg_sq);
    if (rule.amsgrad) of.max_exp_avg_sq.store_at(max_exp_avg_sq_at, e.max_exp_avg_sq);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      updated.param[j] = i == j ? stored : updated.param[j];
      updated.moved[j] = i == j ? stored - before : updated.moved[j];
    }
  }
}

// One half of a piece.
template <bool kExtras>
GRADOPS_DEVICE void update_half(const PieceAt& piece, int half, const Lanes& lanes, const float (&grad)[8],
                                const StepDecision& decision, const RowRule& rule, Updated& updated) {
  const UpdatedTensors<kExtras> of(piece);
  constexpr WeightDecay kL2 = WeightDecay::kL2, kDecoupled = WeightDecay::kDecoupled;
  if (!of.in_vectors()) return update_elements(of, half, lanes, grad, decision, rule, updated);
  if (rule.decay == kDecoupled) {
    if (rule.amsgrad) return update_vectors<kDecoupled, true>(of, half, lanes, grad, decision, rule.adam, updated);
    return update_vectors<kDecoupled, false>(of, half, lanes, grad, decision, rule.adam, updated);
  }
  if (rule.amsgrad) return update_vectors<kL2, true>(of, half, lanes, grad, decision, rule.adam, updated);
  update_vectors<kL2, false>(of, half, lanes, grad, decision, rule.adam, updated);
}

// The statistics of a piece of parameters, from what the update kept of it or, rarely, by reading it back.
GRADOPS_DEVICE ChunkStats param_piece_stats(const PieceAt& piece, const Lanes& lanes, const LaneSums& sums) {
  const ChunkStats stats = sums_of_warp(sums, lanes);
  if (is_plain(stats, NormType::kL2)) return stats;
  float param[16];
  load_piece<2>(piece.of(&TensorRow::param), 0, lanes, UsedOnce(), param);
  return piece_stats(param, piece.n, lanes, GradRule{}, Norm{NormType::kL2, 2.0f});
}

// The block's pieces, backwards: gradients that were read last are the likeliest to be in the L2 cache still, and
// parked ones can wait. kExtras is for what few ask for and what takes registers: compensated parameters and tracked
// updates. What a piece's parameters are moved by is then kept whole, so that it can be looked at twice: tiny moves
// have no square in float32.
template <bool kExtras, class Parked>
GRADOPS_DEVICE void adam_step(const Call& call, const BlockShare& share, const SharedState& shared,
                              const Parked& parking) {
#pragma unroll 1
  for (int32_t slot = share.slots() - 1; slot >= 0; --slot) {
    const PieceAt piece(call.step.table, share.piece(slot));
    const void* data = call.grad(piece.row_index);
    if (data == nullptr) continue;
    const Lanes lanes = piece.lanes();
    const RowRule rule = load_struct(call.step.work.row_rules + piece.row_index);
    LaneSums sums;
    float moved[16] = {};
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float grad[8];
      Updated updated;
      if (parking.holds(slot)) {
        parking.take(slot, half, grad);
      } else {
        load_piece<1>(piece.grad(data), half, lanes, UsedOnce(), grad);
      }
      update_half<kExtras>(piece, half, lanes, grad, shared.decision, rule, updated);
      if (piece.has(&TensorRow::rounded)) store_piece(piece.of(&TensorRow::rounded), half, lanes, updated.param);
      if (shared.gather_squares) sums.add<NormType::kL2>(updated.param, 2 * half, piece.n, lanes, GradRule{});
      if constexpr (kExtras) {
#pragma unroll
        for (int i = 0; i < 16; ++i) moved[i] = i / 8 == half ? updated.moved[i % 8] : moved[i];
      }
    }
    if (!shared.gather_squares) continue;
    const ChunkStats stats = param_piece_stats(piece, lanes, sums);
    if (threadIdx.x % 32 == 0) store_struct(call.step.work.piece_stats + share.piece(slot), stats);
    if (kExtras && call.step.rules.track_updates) {
      const ChunkStats moves = piece_stats(moved, piece.n, lanes, GradRule{}, Norm{NormType::kL2, 2.0f});
      if (threadIdx.x % 32 == 0) store_struct(call.step.work.piece_moves + share.piece(slot), moves);
    }
  }
}

// What follows the decision, but for write_updates.
template <bool kExtras, class Parked>
GRADOPS_DEVICE void carry_out(const Call& call, const BlockShare& share, SharedState& shared, const Parked& parking) {
  const StepArgs& step = call.step;
  write_rows(call, shared);
  if (shared.decision.skip) return;
  adam_step<kExtras>(call, share, shared, parking);
  if (!shared.gather_squares) return;
  const auto takes_no_part = [&](int32_t row) { return call.grad(row) == nullptr; };
  merge_pieces(step.table, share, step.work.piece_stats, step.work.param_sums, 2.0, takes_no_part);
  if (kExtras && step.rules.track_updates) {
    merge_pieces(step.table, share, step.work.piece_moves, step.work.moved_sums, 2.0, takes_no_part);
  }
}

// All that follows the grid barrier, but for write_updates.
template <bool kExtras, class Parked>
GRADOPS_DEVICE void update_phase(const Call& call, const BlockShare& share, SharedState& shared,
                                 const Parked& parking) {
  decide_by_block(call, shared);
  carry_out<kExtras>(call, share, shared, parking);
}

// What a tracked update leaves of each row, once every block is done.
GRADOPS_DEVICE void write_updates(const Call& call, bool skip, GradStats (&scratch)[kWarps]) {
  const StepArgs& step = call.step;
  if (skip) {
    return for_each_row(step.table, nullptr, 2.0, scratch, [&](int32_t row, const GradStats&) {
      store(step.stats.update_ratio + row, call.grad(row) == nullptr ? 0.0f : NAN);
    });
  }
  for_each_row(step.table, step.work.param_sums, 2.0, scratch, [&](int32_t row, const GradStats& squares) {
    const double norm = call.grad(row) == nullptr ? 0.0 : squares.power.norm(2.0);
    store(step.stats.param_rms + row, static_cast<float>(rms_of(norm, load(&step.table.rows[row].numel))));
    store(step.work.row_norms + row, norm);
  });
  // The thread that is given a row is the same as before.
  for_each_row(step.table, step.work.moved_sums, 2.0, scratch, [&](int32_t row, const GradStats& squares) {
    const double moved = call.grad(row) == nullptr ? 0.0 : squares.power.norm(2.0);
    store(step.stats.update_ratio + row, update_ratio(moved, load(step.work.row_norms + row)));
  });
}

}  // namespace gradops::cuda
