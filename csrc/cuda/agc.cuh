// Adaptive gradient clipping in device code (math/agc.h): the norms of all units are taken while the gradients are
// read, and each gradient is clipped on its way into the update.
//
// A warp that has read a piece of the gradients lays it in shared memory, where its segments are added up by as many
// lanes each as there are for one: all of them where the piece is of one filter, one where filters have a few elements.
#pragma once

#include "cuda/decide.cuh"

namespace gradops::cuda {

// What a block's threads share, at the beginning of its dynamic shared memory; staged pieces follow.
struct alignas(16) UnitState {
  SharedState shared;
  StepDecision clipping;  // what precedes the units' own factors; shared.decision then leaves gradients as they are
};

// The runs in a piece.
struct RunsOfPiece {
  int64_t first;  // run
  int32_t head;   // elements of it, at most kPiece
  int32_t run;    // elements of those that follow, likewise

  GRADOPS_DEVICE RunsOfPiece(const RowUnits& units, int64_t begin) {
    first = begin / units.run;
    const int64_t left = units.run - (begin - first * units.run);
    head = static_cast<int32_t>(left < kPiece ? left : kPiece);
    run = static_cast<int32_t>(units.run < kPiece ? units.run : kPiece);
  }

  // Which run, counted from the first, an element is of, and where in the piece a run begins.
  GRADOPS_DEVICE int32_t of(int32_t element) const { return element < head ? 0 : 1 + (element - head) / run; }
  GRADOPS_DEVICE int32_t begin(int32_t index) const { return index == 0 ? 0 : head + (index - 1) * run; }
};

struct Squares {
  float sum;
  float scale;
};

// Sums over `width` neighbouring lanes, a power of two; the same in each of them. All lanes of the warp take part.
GRADOPS_DEVICE float lanes_sum(float x, int32_t width) {
#pragma unroll 1
  for (int bit = 1; bit < width; bit *= 2) x += __shfl_xor_sync(kFullWarp, x, bit);
  return x;
}

GRADOPS_DEVICE int32_t lanes_max(int32_t x, int32_t width) {
#pragma unroll 1
  for (int bit = 1; bit < width; bit *= 2) {
    const int32_t other = __shfl_xor_sync(kFullWarp, x, bit);
    x = other > x ? other : x;
  }
  return x;
}

// Of the values [first, last), by `width` lanes; values are looked at twice where a plain sum loses something.
GRADOPS_DEVICE Squares squares_of(const float* values, int32_t first, int32_t last, int32_t width) {
  const int32_t mine = first + static_cast<int32_t>(threadIdx.x) % width;
  Squares squares{0.0f, 1.0f};
  int32_t abs_max_bits = 0;
#pragma unroll 1
  for (int32_t i = mine; i < last; i += width) {
    add_element<NormType::kL2>(values[i], Unscaling{}, squares.sum, abs_max_bits);
  }
  squares.sum = lanes_sum(squares.sum, width);
  abs_max_bits = lanes_max(abs_max_bits, width);
  const bool again = needs_scale(NormType::kL2, squares.sum, abs_max_bits);
  if (!__any_sync(kFullWarp, again)) return squares;
  const float scale = again ? scale_for<NormType::kL2>(bits_float(abs_max_bits)) : 1.0f;
  float sum = 0.0f;
#pragma unroll 1
  for (int32_t i = mine; i < last; i += width) sum += power_in_scale(values[i], Unscaling{}, scale, 2.0f);
  sum = lanes_sum(sum, width);
  return again ? Squares{sum, scale} : squares;
}

// The warp's piece in shared memory, in the order of its elements.
struct StagedPiece {
  float* values;

  // `staging` has a piece for each warp of the block.
  GRADOPS_DEVICE explicit StagedPiece(float* staging) : values(staging + threadIdx.x / 32 * kPiece) {}

  GRADOPS_DEVICE void fill(const float (&x)[16], const Lanes& lanes, const Unscaling& unscaling) const {
    __syncwarp();  // what was here may still be read
#pragma unroll
    for (int q = 0; q < Lanes::kQuads; ++q) {
      float clamped[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) clamped[i] = clamp_grad(x[4 * q + i] * unscaling.inv_scale, unscaling.clip_value);
      *reinterpret_cast<float4*>(values + lanes.element(q)) = {clamped[0], clamped[1], clamped[2], clamped[3]};
    }
    __syncwarp();
  }
};

// In the place of parked gradients while they are measured: parks none, and leaves the sums of their segments.
struct UnitMeasure {
  const Call& call;
  const BlockShare& share;
  Unscaling unscaling;
  StagedPiece staged;

  GRADOPS_DEVICE bool holds(int32_t) const { return false; }

  GRADOPS_DEVICE void put(int32_t slot, const float (&grad)[16]) const {
    const PieceAt piece(call.step.table, share.piece(slot));
    const RowUnits units = load_struct(call.step.units.rows + piece.row_index);
    if (units.count == 0) return;
    const Lanes lanes = piece.lanes();
    float param[16];
    load_piece<2>(piece.of(kParam), 0, lanes, CachePolicy::read_again(), param);
    const RunsOfPiece runs(units, piece.begin);
    UnitSquares* segments = call.step.unit_work.segments + units.first_segment + runs.first + piece.begin / kPiece;
    sum_up(grad, unscaling, piece.n, lanes, runs, &segments->grad);
    sum_up(param, Unscaling{}, piece.n, lanes, runs, &segments->param);
  }

 private:
  // Writes the sum and the scale of every run in the piece, each run's four floats behind the last's.
  GRADOPS_DEVICE void sum_up(const float (&x)[16], const Unscaling& of, int32_t n, const Lanes& lanes,
                             const RunsOfPiece& runs, float* to) const {
    staged.fill(x, lanes, of);
    const int32_t count = runs.of(n - 1) + 1;
    int32_t width = 32;
    while (width > 1 && count * width > 32) width /= 2;
    const int32_t together = 32 / width, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int32_t base = 0; base < count; base += together) {
      const int32_t index = base + lane / width;
      const int32_t first = index < count ? runs.begin(index) : n;
      const int32_t next = first + (index == 0 ? runs.head : runs.run);
      const Squares squares = squares_of(staged.values, first, next < n ? next : n, width);
      if (index < count && lane % width == 0) {
        store(reinterpret_cast<float2*>(to + 4 * index), float2{squares.sum, squares.scale});
      }
    }
  }
};

// In the place of parked gradients while the update reads them: unscaled, clamped and clipped, each by its unit.
struct UnitClip {
  const Call& call;
  const BlockShare& share;
  const StepDecision& decision;

  GRADOPS_DEVICE bool holds(int32_t) const { return true; }

  GRADOPS_DEVICE void take(int32_t slot, int half, float (&x)[8]) const {
    const PieceAt piece(call.step.table, share.piece(slot));
    const Lanes lanes = piece.lanes();
    load_piece<1>(piece.grad(call.grad(piece.row_index)), half, lanes, UsedOnce(), x);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = clamp_grad(x[i] * decision.inv_scale, decision.clip_value) * decision.clip_coef;
    }
    const RowUnits units = load_struct(call.step.units.rows + piece.row_index);
    if (units.count == 0) return;
    const RunsOfPiece runs(units, piece.begin);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int32_t element = lanes.element(2 * half + i / 4) + i % 4;
      if (element < piece.n) x[i] *= coef_of(units, runs, element);
    }
  }

 private:
  GRADOPS_DEVICE float coef_of(const RowUnits& units, const RunsOfPiece& runs, int32_t element) const {
    int64_t unit = runs.first + runs.of(element);
    if (unit >= units.count) unit %= units.count;
    return load(call.step.unit_work.coefs + units.first_unit + unit);
  }
};

// A unit's sums so far.
struct UnitNorms {
  PowerSum grad, param;

  GRADOPS_DEVICE void merge(const UnitSquares& squares) {
    grad.merge(squares.grad, squares.grad_power_scale, 2.0);
    param.merge(squares.param, squares.param_power_scale, 2.0);
  }

  // With those of the `width` neighbouring lanes. All lanes of the warp take part.
  GRADOPS_DEVICE void merge_lanes(int32_t width) {
#pragma unroll 1
    for (int bit = 1; bit < width; bit *= 2) {
      grad.merge(__shfl_xor_sync(kFullWarp, grad.sum, bit), __shfl_xor_sync(kFullWarp, grad.scale, bit), 2.0);
      param.merge(__shfl_xor_sync(kFullWarp, param.sum, bit), __shfl_xor_sync(kFullWarp, param.scale, bit), 2.0);
    }
  }
};

// The lane's share of a unit's segments.
GRADOPS_DEVICE UnitNorms unit_norms(const Call& call, const RowUnits& units, int64_t unit, int64_t lane) {
  UnitNorms norms;
  const UnitSquares* segments = call.step.unit_work.segments + units.first_segment;
#pragma unroll 1
  for (int64_t i = lane; i < units.repeats * units.pieces_of_run; i += units.lanes) {
    const int64_t repeat = i / units.pieces_of_run;
    const int64_t run = unit + repeat * units.count;
    const int64_t piece = run * units.run / kPiece + (i - repeat * units.pieces_of_run);
    if (piece * kPiece < (run + 1) * units.run) norms.merge(load_struct(segments + run + piece));
  }
  return norms;
}

// Every unit's factor, from the sums of its segments; `clip_coef` is what precedes it.
GRADOPS_DEVICE void decide_units(const Call& call, float clip_coef) {
  const UnitTable& table = call.step.units;
  const int32_t lane = threadIdx.x % 32;
  const int32_t one = float_bits(1.0f);
  int32_t smallest = one;
#pragma unroll 1
  for (int32_t i = blockIdx.x * kWarps + threadIdx.x / 32; i < table.group_count; i += gridDim.x * kWarps) {
    const UnitGroup group = load_struct(table.groups + i);
    if (call.grad(group.row) == nullptr) continue;
    const RowUnits units = load_struct(table.rows + group.row);
    const int32_t width = static_cast<int32_t>(units.lanes);
    const int64_t unit = int64_t{group.index} * (32 / width) + lane / width;
    UnitNorms norms;
    if (unit < units.count) norms = unit_norms(call, units, unit, lane % width);
    norms.merge_lanes(width);
    if (unit < units.count && lane % width == 0) {
      const float coef =
          agc_coef(norms.param.norm(2.0), clip_coef * norms.grad.norm(2.0), call.step.policies.agc_ratio);
      store(call.step.unit_work.coefs + units.first_unit + unit, coef);
      const int32_t bits = float_bits(coef);
      smallest = bits < smallest ? bits : smallest;
    }
  }
  smallest = one - warp_max(one - smallest);
  if (lane == 0 && smallest < one) atomicMin(call.step.unit_work.smallest_coef, smallest);
}

// The decision, of which the update sees nothing more: gradients come to it clipped. The smallest factor is what
// users see of the clipping.
GRADOPS_DEVICE void clip_before_update(const Call& call, UnitState& state) {
  if (threadIdx.x == 0) {
    StepDecision& decision = state.shared.decision;
    state.clipping = decision;
    decision = {1.0f, INFINITY, 1.0f, decision.skip};
    if (blockIdx.x == 0 && !decision.skip) {
      const float smallest = bits_float(load(call.step.unit_work.smallest_coef));
      const float clip_coef = state.clipping.clip_coef;
      store(call.step.stats.scalars + kClipCoef, smallest < clip_coef ? smallest : clip_coef);
    }
  }
  __syncthreads();
}

}  // namespace gradops::cuda
