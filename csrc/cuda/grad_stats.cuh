// The first phase, in device code: each block reads the gradients of its chunks once, parks what fits on the chip, and
// leaves the statistics of its chunks in the workspace.
#pragma once

#include "cuda/multi_tensor.cuh"

namespace gradops::cuda {

// Gradients that a thread keeps from the first phase to the last: its 16 elements of each of the warp's first pieces in
// registers, of those that follow in shared memory.
template <int kRegisterSlots>
struct Parking {
  static constexpr int kQuads = Lanes::kQuads;
  float registers[kRegisterSlots > 0 ? kRegisterSlots : 1][16] = {};
  float4* shared;  // [slot][warp][quad][lane], so that neighbours lie in neighbouring banks
  int32_t shared_slots;

  GRADOPS_DEVICE bool holds(int32_t slot) const { return slot - kRegisterSlots < shared_slots; }

  GRADOPS_DEVICE float4* place(int32_t slot, int quad) const {
    const int32_t row = (slot - kRegisterSlots) * kWarps + threadIdx.x / 32;
    return shared + (row * kQuads + quad) * 32 + threadIdx.x % 32;
  }

  // Selects, not jumps: the compiler would turn those into one store with a computed place, which registers have not.
  GRADOPS_DEVICE void put(int32_t slot, const float (&x)[16]) {
    if (slot < kRegisterSlots) {
#pragma unroll
      for (int i = 0; i < 16 * kRegisterSlots; ++i) {
        registers[i / 16][i % 16] = i / 16 == slot ? x[i % 16] : registers[i / 16][i % 16];
      }
    } else if (holds(slot)) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) *place(slot, q) = {x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]};
    }
  }

  // One half of a piece that is parked.
  GRADOPS_DEVICE void take(int32_t slot, int half, float (&x)[8]) const {
    if (slot < kRegisterSlots) {
#pragma unroll
      for (int i = 0; i < 16 * kRegisterSlots; ++i) {
        x[i % 8] = i == i % 8 || i / 8 == 2 * slot + half ? registers[i / 16][i % 16] : x[i % 8];
      }
    } else {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const float4 quad = *place(slot, 2 * half + q);
        x[4 * q] = quad.x, x[4 * q + 1] = quad.y, x[4 * q + 2] = quad.z, x[4 * q + 3] = quad.w;
      }
    }
  }
};

GRADOPS_DEVICE SpikeGuardState guard_state(const StepArgs& step) {
  const StatsBuffers& stats = step.stats;
  if (!step.policies.guards) return {};
  return {load(stats.scalars + kLrFactor), load(stats.scalars + kUsualNorm), load(stats.scalars + kDeviation),
          load(stats.counters + kNormsSeen)};
}

GRADOPS_DEVICE StepInputs read_inputs(const StepArgs& step) {
  StepInputs inputs;
  inputs.loss_scale = step.loss_scale != nullptr ? load(step.loss_scale) : 1.0f;
  inputs.inv_scale = step.grads_scaled ? inv_loss_scale(inputs.loss_scale) : 1.0f;
  inputs.found_inf = step.found_inf != nullptr && load(step.found_inf) != 0.0f;
  inputs.guard = guard_state(step);
  return inputs;
}

// A piece of the gradients, on its way into registers. `n` is 0 where the row has no gradient.
struct GradPiece {
  int32_t n = 0;
  bool octets = false;
  float values[16];

  GRADOPS_DEVICE void read(const Call& call, int32_t index, CachePolicy policy) {
    const PieceAt piece(call.step.table, index);
    const void* data = call.grad(piece.row_index);
    n = data != nullptr ? piece.n : 0;
    if (n == 0) return;
    const Lanes lanes = piece.lanes();
    octets = lanes.octets();
    load_piece<2>(piece.grad(data), 0, lanes, policy, values);
  }
};

// Statistics of the block's pieces, one warp a piece. The next one is read before this one is looked at: a warp alone
// would leave the memory idle while it adds up.
template <class Parked>
GRADOPS_DEVICE void grad_stats(const Call& call, const BlockShare& share, const Unscaling& unscaling, const Norm& norm,
                               Parked& parking) {
  const CachePolicy used_once = CachePolicy::used_once();
  const CachePolicy read_again = CachePolicy::read_again();
  const int32_t slots = share.slots();
  GradPiece next;
  if (slots > 0) next.read(call, share.piece(0), parking.holds(0) ? used_once : read_again);
#pragma unroll 1
  for (int32_t slot = 0; slot < slots; ++slot) {
    const GradPiece piece = next;
    if (slot + 1 < slots) next.read(call, share.piece(slot + 1), parking.holds(slot + 1) ? used_once : read_again);
    ChunkStats stats;
    if (piece.n > 0) {
      parking.put(slot, piece.values);
      stats = piece_stats(piece.values, piece.n, Lanes(piece.octets), unscaling, norm);
    }
    if (threadIdx.x % 32 == 0) store_struct(call.step.work.piece_stats + share.piece(slot), stats);
  }
}

GRADOPS_DEVICE Norm norm_of(const StepPolicies& policies) {
  return {norm_type_of(policies.norm_type), static_cast<float>(policies.norm_type)};
}

// The whole phase but for the rows' rules, which only an update needs.
template <class Parked>
GRADOPS_DEVICE void measure(const Call& call, const BlockShare& share, Parked& parking) {
  const StepArgs& step = call.step;
  const StepInputs inputs = read_inputs(step);
  if (blockIdx.x == 0 && threadIdx.x == 0) store_struct(step.work.inputs, inputs);
  grad_stats(call, share, Unscaling{inputs.inv_scale, step.policies.clip_value}, norm_of(step.policies), parking);
  merge_pieces(step.table, share, step.work.piece_stats, step.work.grad_sums, step.policies.norm_type,
               [](int32_t) { return false; });
}

}  // namespace gradops::cuda
