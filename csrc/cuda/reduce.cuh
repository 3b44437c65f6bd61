// Sums in a fixed order, whatever the grid, the launch form and the width of the accesses: quad q of a piece belongs to
// virtual lane q % 64, the 64 lanes are added in the order of their bits, the pieces of a chunk and the chunks of a row
// likewise.
#pragma once

#include "cuda/vec.cuh"

namespace gradops::cuda {

constexpr uint32_t kFullWarp = 0xffffffffu;

struct Norm {
  NormType type;
  float p;
};

GRADOPS_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) x += __shfl_xor_sync(kFullWarp, x, bit);
  return x;
}

// A thread holds two virtual lanes: neighbours, where it holds octets, which are added first; else lanes 32 apart,
// which are added last.
GRADOPS_DEVICE float piece_sum(float even, float odd, bool octets) {
  if (octets) return warp_sum(even + odd);
  even = warp_sum(even);
  return even + warp_sum(odd);
}

// Of numbers that are not negative.
GRADOPS_DEVICE int32_t warp_max(int32_t x) {
#if defined(GRADOPS_EMULATE) || __CUDA_ARCH__ >= 800
  return static_cast<int32_t>(__reduce_max_sync(kFullWarp, static_cast<unsigned>(x)));
#else
  for (int bit = 1; bit < 32; bit *= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, bit));
  return x;
#endif
}

// What one thread adds up of a piece.
struct LaneSums {
  float even = 0.0f;
  float odd = 0.0f;
  int32_t abs_max_bits = 0;

  // Four quads, or the two of one half.
  template <NormType kNorm, int kCount>
  GRADOPS_DEVICE void add(const float (&x)[kCount], int first_quad, int32_t n, const Lanes& lanes,
                          const Unscaling& unscaling) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = lanes.element(first_quad + i / 4) + i % 4 < n;
      if (inside) add_element<kNorm>(x[i], unscaling, i / 4 % 2 == 0 ? even : odd, abs_max_bits);
    }
  }
};

template <int kCount>
GRADOPS_DEVICE void add_piece(LaneSums& sums, const float (&x)[kCount], int32_t n, const Lanes& lanes,
                              const Unscaling& unscaling, const Norm& norm) {
  switch (norm.type) {
    case NormType::kL1:
      return sums.add<NormType::kL1>(x, 0, n, lanes, unscaling);
    case NormType::kL2:
      return sums.add<NormType::kL2>(x, 0, n, lanes, unscaling);
    default:  // a general power is summed in its scale, at the second look
      return sums.add<NormType::kInf>(x, 0, n, lanes, unscaling);
  }
}

GRADOPS_DEVICE bool needs_scale(NormType type, float power_sum, int32_t abs_max_bits) {
  switch (type) {
    case NormType::kL1:
      return gradops::needs_scale<NormType::kL1>(power_sum, abs_max_bits);
    case NormType::kL2:
      return gradops::needs_scale<NormType::kL2>(power_sum, abs_max_bits);
    case NormType::kInf:
      return false;
    default:
      return gradops::needs_scale<NormType::kGeneral>(power_sum, abs_max_bits);
  }
}

// The rare second look at a piece: how many elements are not finite, and the sum in a scale of its own.
GRADOPS_DEVICE void look_again(const float (&x)[16], int32_t n, const Lanes& lanes, const Unscaling& unscaling,
                               const Norm& norm, ChunkStats& stats) {
  const bool in_scale = needs_scale(norm.type, stats.power_sum, stats.abs_max_bits);
  if (in_scale) {
    const float largest = largest_clamped(stats.abs_max_bits, unscaling.clip_value);
    stats.scale =
        norm.type == NormType::kGeneral ? scale_for<NormType::kGeneral>(largest) : scale_for<NormType::kL2>(largest);
  }
  float even = 0.0f, odd = 0.0f;
  int32_t nonfinite = 0;
#pragma unroll 1
  for (int i = 0; i < 16; ++i) {
    float value = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j) value = i == j ? x[j] : value;
    if (lanes.element(i / 4) + i % 4 >= n) continue;
    nonfinite += (float_bits(value * unscaling.inv_scale) & 0x7fffffff) >= kInfBits;
    if (in_scale) (i / 4 % 2 == 0 ? even : odd) += power_in_scale(value, unscaling, stats.scale, norm.p);
  }
  if (in_scale) stats.power_sum = piece_sum(even, odd, lanes.octets());
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) nonfinite += __shfl_xor_sync(kFullWarp, nonfinite, bit);
  stats.nonfinite = nonfinite;
}

// Whether the sums alone give the statistics.
GRADOPS_DEVICE bool is_plain(const ChunkStats& stats, NormType type) {
  return stats.abs_max_bits < kInfBits && !needs_scale(type, stats.power_sum, stats.abs_max_bits);
}

GRADOPS_DEVICE ChunkStats sums_of_warp(const LaneSums& sums, const Lanes& lanes) {
  ChunkStats stats;
  stats.power_sum = piece_sum(sums.even, sums.odd, lanes.octets());
  stats.abs_max_bits = warp_max(sums.abs_max_bits);
  return stats;
}

// Statistics of one piece, the same in every lane.
GRADOPS_DEVICE ChunkStats piece_stats(const float (&x)[16], int32_t n, const Lanes& lanes, const Unscaling& unscaling,
                                      const Norm& norm) {
  LaneSums sums;
  add_piece(sums, x, n, lanes, unscaling, norm);
  ChunkStats stats = sums_of_warp(sums, lanes);
  if (norm.type == NormType::kInf || norm.type == NormType::kGeneral) stats.power_sum = 0.0f;
  if (!is_plain(stats, norm.type)) look_again(x, n, lanes, unscaling, norm, stats);
  return stats;
}

GRADOPS_DEVICE GradStats shuffle_xor(const GradStats& stats, int bit) {
  constexpr int kWords = sizeof(GradStats) / sizeof(uint64_t);
  uint64_t words[kWords];
  memcpy(words, &stats, sizeof(stats));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(kFullWarp, words[i], bit);
  GradStats other;
  memcpy(&other, words, sizeof(other));
  return other;
}

// Merges the statistics of `kWidth` neighbouring lanes, in a tree.
template <int kWidth>
GRADOPS_DEVICE void merge_lanes(GradStats& stats, double p) {
#pragma unroll 1
  for (int bit = 1; bit < kWidth; bit *= 2) stats.merge(shuffle_xor(stats, bit), p);
}

// Sums [first, last) merged by the whole block in a fixed order; the same in every thread. `scratch` is shared memory.
GRADOPS_DEVICE GradStats merge_by_block(const GradStats* sums, int32_t first, int32_t last, double p,
                                        GradStats (&scratch)[kWarps]) {
  GradStats total;
  for (int32_t i = first + threadIdx.x; i < last; i += kThreads) total.merge(load_struct(sums + i), p);
  merge_lanes<32>(total, p);
  __syncthreads();  // the scratch may still be read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = total;
  __syncthreads();
  total = scratch[threadIdx.x % kWarps];
  merge_lanes<kWarps>(total, p);
  return total;
}

}  // namespace gradops::cuda
