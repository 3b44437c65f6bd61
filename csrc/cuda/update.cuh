// The update, in device code: each block updates its chunks by what was decided.
#pragma once

#include "cuda/decide.cuh"
#include "cuda/updated_tensors.cuh"

namespace gradops::cuda {

template <class Rule, int kVariant, WeightDecay kDecay, bool kExtras>
GRADOPS_DEVICE void update_vectors(const UpdatedTensors<Rule, kExtras>& of, int half, const Lanes& lanes,
                                   const float (&grad)[8], const StepDecision& decision, const RowRule& rule,
                                   Updated& updated) {
  const auto coefs = own_numbers<typename Rule::Coefs>(rule.own);
  float (&param)[8] = updated.param;
  float moments[Rule::kMoments][8] = {};
  load_half(of.param, half, lanes, param);
  for_each_moment<Rule, kVariant>([&](auto m) { load_half(of.moments[m.value], half, lanes, moments[m.value]); });
#pragma unroll
  for (int i = 0; i < 8; ++i) updated.moved[i] = param[i];
  if (of.compensated) add_compensation(of.compensation(), half, lanes, param);
  float left[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float moment[Rule::kMoments] = {};
    for_each_moment<Rule, kVariant>([&](auto m) { moment[m.value] = moments[m.value][i]; });
    const float after = update_element<Rule, kVariant, kDecay>(param[i], grad[i], moment, decision, rule, coefs);
    param[i] = as_stored(after, of.param.view.dtype);
    left[i] = left_by_rounding(after, param[i]);
    updated.moved[i] = param[i] - updated.moved[i];
    for_each_moment<Rule, kVariant>([&](auto m) { moments[m.value][i] = moment[m.value]; });
  }
  store_half(of.param, half, lanes, param);
  if (of.compensated) store_compensation(of.compensation(), half, lanes, left);
  for_each_moment<Rule, kVariant>([&](auto m) { store_half(of.moments[m.value], half, lanes, moments[m.value]); });
}

// One element, whatever the row's kind of decay and variant.
template <class Rule>
GRADOPS_DEVICE float update_any(float param, float grad, float (&moments)[Rule::kMoments], const StepDecision& decision,
                                const RowRule& rule) {
  const auto coefs = own_numbers<typename Rule::Coefs>(rule.own);
  if (rule.decay_kind == WeightDecay::kDecoupled) {
    return with_variant<Rule>(rule.variant, [&](auto variant) {
      return update_element<Rule, variant.value, WeightDecay::kDecoupled>(param, grad, moments, decision, rule, coefs);
    });
  }
  return with_variant<Rule>(rule.variant, [&](auto variant) {
    return update_element<Rule, variant.value, WeightDecay::kL2>(param, grad, moments, decision, rule, coefs);
  });
}

// One element after the other, for what is strided, misaligned or an odd tail.
template <class Rule, bool kExtras>
GRADOPS_DEVICE void update_elements(const UpdatedTensors<Rule, kExtras>& of, int half, const Lanes& lanes,
                                    const float (&grad)[8], const StepDecision& decision, const RowRule& rule,
                                    Updated& updated) {
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const int32_t element = lanes.element(2 * half + i / 4) + i % 4;
    if (element >= of.param.n) continue;
    const int64_t param_at = of.param.place(element);
    int64_t moment_at[Rule::kMoments];
#pragma unroll
    for (int m = 0; m < Rule::kMoments; ++m) {
      moment_at[m] = Rule::uses(rule.variant, m) ? of.moments[m].place(element) : 0;
    }
    const float before = of.param.load_at(param_at);
    float moment[Rule::kMoments];
#pragma unroll
    for (int m = 0; m < Rule::kMoments; ++m) {
      moment[m] = Rule::uses(rule.variant, m) ? of.moments[m].load_at(moment_at[m]) : 0.0f;
    }
    float param = before;
    if (of.compensated) param += of.compensation().load_at(of.compensation().place(element));
    float value = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) value = i == j ? grad[j] : value;
    param = update_any<Rule>(param, value, moment, decision, rule);
    const float stored = as_stored(param, of.param.view.dtype);
    of.param.store_at(param_at, param);
    if (of.compensated) {
      of.compensation().store_at(of.compensation().place(element), left_by_rounding(param, stored));
    }
#pragma unroll
    for (int m = 0; m < Rule::kMoments; ++m) {
      if (Rule::uses(rule.variant, m)) of.moments[m].store_at(moment_at[m], moment[m]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      updated.param[j] = i == j ? stored : updated.param[j];
      updated.moved[j] = i == j ? stored - before : updated.moved[j];
    }
  }
}

// One half of a piece.
template <class Rule, bool kExtras>
GRADOPS_DEVICE void update_half(const PieceAt& piece, int half, const Lanes& lanes, const float (&grad)[8],
                                const StepDecision& decision, const RowRule& rule, Updated& updated) {
  const UpdatedTensors<Rule, kExtras> of(piece);
  if (!of.in_vectors()) return update_elements(of, half, lanes, grad, decision, rule, updated);
  if (rule.decay_kind == WeightDecay::kDecoupled) {
    with_variant<Rule>(rule.variant, [&](auto variant) {
      update_vectors<Rule, variant.value, WeightDecay::kDecoupled>(of, half, lanes, grad, decision, rule, updated);
    });
  } else {
    with_variant<Rule>(rule.variant, [&](auto variant) {
      update_vectors<Rule, variant.value, WeightDecay::kL2>(of, half, lanes, grad, decision, rule, updated);
    });
  }
}

// The statistics of a piece of parameters, from what the update kept of it or, rarely, by reading it back.
GRADOPS_DEVICE ChunkStats param_piece_stats(const PieceAt& piece, const Lanes& lanes, const LaneSums& sums) {
  const ChunkStats stats = sums_of_warp(sums, lanes);
  if (is_plain(stats, NormType::kL2)) return stats;
  float param[16];
  load_piece<2>(piece.of(kParam), 0, lanes, UsedOnce(), param);
  return piece_stats(param, piece.n, lanes, Unscaling{}, Norm{NormType::kL2, 2.0f});
}

// Averages half a piece of what was stored.
GRADOPS_DEVICE void average_half(const Stretch& average, int half, const Lanes& lanes, const float (&param)[8],
                                 float weight) {
  float averages[8];
  load_piece<1>(average, half, lanes, UsedOnce(), averages);
#pragma unroll
  for (int i = 0; i < 8; ++i) averages[i] = averaged(averages[i], param[i], weight);
  store_piece(average, half, lanes, averages);
}

// The block's pieces, backwards: gradients that were read last are the likeliest to be in the L2 cache still, and
// parked ones can wait. kExtras is for what few ask for and what takes registers: compensated and averaged parameters
// and tracked updates. What a piece's parameters are moved by is then kept whole, so that it can be looked at twice:
// tiny moves have no square in float32.
template <class Rule, bool kExtras, class Parked>
GRADOPS_DEVICE void update_pieces(const Call& call, const BlockShare& share, const SharedState& shared,
                                  const Parked& parking) {
#pragma unroll 1
  for (int32_t slot = share.slots() - 1; slot >= 0; --slot) {
    const PieceAt piece(call.step.table, share.piece(slot));
    const void* data = call.grad(piece.row_index);
    if (data == nullptr) continue;
    const Lanes lanes = piece.lanes();
    const RowRule rule = load_struct(call.step.work.row_rules + piece.row_index);
    const bool averages = kExtras && call.step.table.averaged && piece.has(kEma);
    const float ema_weight = averages ? call.ema_weight(piece.row_index) : 0.0f;
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
      update_half<Rule, kExtras>(piece, half, lanes, grad, shared.decision, rule, updated);
      if (piece.has(kRounded)) store_piece(piece.of(kRounded), half, lanes, updated.param);
      if (kExtras && ema_weight != 0.0f) average_half(piece.of(kEma), half, lanes, updated.param, ema_weight);
      if (shared.gather_squares) sums.add<NormType::kL2>(updated.param, 2 * half, piece.n, lanes, Unscaling{});
      if constexpr (kExtras) {
#pragma unroll
        for (int i = 0; i < 16; ++i) moved[i] = i / 8 == half ? updated.moved[i % 8] : moved[i];
      }
    }
    if (!shared.gather_squares) continue;
    const ChunkStats stats = param_piece_stats(piece, lanes, sums);
    if (threadIdx.x % 32 == 0) store_struct(call.step.work.piece_stats + share.piece(slot), stats);
    if (kExtras && call.step.policies.track_updates) {
      const ChunkStats moves = piece_stats(moved, piece.n, lanes, Unscaling{}, Norm{NormType::kL2, 2.0f});
      if (threadIdx.x % 32 == 0) store_struct(call.step.work.piece_moves + share.piece(slot), moves);
    }
  }
}

// Of a step that is not skipped, once its steps are counted: the scalars of rules that have one. The thread that is
// given a row is the one that counted its step.
template <class Rule>
GRADOPS_DEVICE void move_scalars(const Call& call, GradStats (&scratch)[kWarps]) {
  if constexpr (RuleWithScalar<Rule>) {
    for_each_row(call.step.table, nullptr, 2.0, scratch, [&](int32_t index, const GradStats&) {
      if (call.grad(index) == nullptr) return;
      const TensorRow* row = call.step.table.rows + index;
      float* scalar = load(&row->scalar);
      const GroupRule group = call.group(load(&row->group));
      store(scalar, next_scalar<Rule>(group.hyper, load(load(&row->step)), load(scalar)));
    });
  }
}

// What follows the decision, but for write_updates.
template <class Rule, bool kExtras, class Parked>
GRADOPS_DEVICE void carry_out(const Call& call, const BlockShare& share, SharedState& shared, const Parked& parking) {
  const StepArgs& step = call.step;
  write_rows(call, shared);
  if (shared.decision.skip) return;
  move_scalars<Rule>(call, shared.scratch);
  update_pieces<Rule, kExtras>(call, share, shared, parking);
  if (!shared.gather_squares) return;
  const auto takes_no_part = [&](int32_t row) { return call.grad(row) == nullptr; };
  merge_pieces(step.table, share, step.work.piece_stats, step.work.param_sums, 2.0, takes_no_part);
  if (kExtras && step.policies.track_updates) {
    merge_pieces(step.table, share, step.work.piece_moves, step.work.moved_sums, 2.0, takes_no_part);
  }
}

}  // namespace gradops::cuda
