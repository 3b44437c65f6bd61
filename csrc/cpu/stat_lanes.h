// The lanes in which a chunk's statistics are gathered, which decide the order of additions and so the bits of a norm.
#pragma once

#include "cpu/isa.h"
#include "math/grad_stats.h"

namespace gradops::cpu {

// Two AVX-512 registers, which hides an addition's latency.
constexpr int kLanes = 32;

// Element i of a chunk belongs to lane i % kLanes, in a full row of lanes as in the tail.
struct alignas(64) StatLanes {
  float power_sum[kLanes];
  int32_t abs_max_bits[kLanes];

  // Vector by vector, which an initializer would not do.
  GRADOPS_HD void clear() {
    for (int lane = 0; lane < kLanes; ++lane) power_sum[lane] = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) abs_max_bits[lane] = 0;
  }
};

// Adds the next `n` elements of a chunk, a multiple of kLanes but for its last ones.
template <NormType kNorm>
GRADOPS_HD void add_to_lanes(const float* __restrict values, int64_t n, const Unscaling unscaling, StatLanes& lanes) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      add_element<kNorm>(values[i + lane], unscaling, lanes.power_sum[lane], lanes.abs_max_bits[lane]);
    }
  }
  for (int lane = 0; i + lane < n; ++lane) {
    add_element<kNorm>(values[i + lane], unscaling, lanes.power_sum[lane], lanes.abs_max_bits[lane]);
  }
}

// Vector by vector, which an assignment would not do.
GRADOPS_HD void copy_lanes(const StatLanes& from, StatLanes& to) {
  for (int lane = 0; lane < kLanes; ++lane) to.power_sum[lane] = from.power_sum[lane];
  for (int lane = 0; lane < kLanes; ++lane) to.abs_max_bits[lane] = from.abs_max_bits[lane];
}

// The same for lanes in memory.
template <NormType kNorm>
GRADOPS_HD void add_to_kept_lanes(const float* values, int64_t n, const Unscaling& unscaling, StatLanes& kept) {
  StatLanes lanes;
  copy_lanes(kept, lanes);
  add_to_lanes<kNorm>(values, n, unscaling, lanes);
  copy_lanes(lanes, kept);
}

// The lanes' statistics, merged in the lanes themselves: exact where needs_scale() is false, and without the count of
// elements that are not finite.
GRADOPS_HD ChunkStats merge(StatLanes& lanes) {
#pragma GCC unroll 5  // in registers then, which a tensor of 64 elements notices
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      lanes.power_sum[lane] += lanes.power_sum[lane + width];
      const int32_t other = lanes.abs_max_bits[lane + width];
      lanes.abs_max_bits[lane] = lanes.abs_max_bits[lane] > other ? lanes.abs_max_bits[lane] : other;
    }
  }
  ChunkStats stats;
  stats.power_sum = lanes.power_sum[0];
  stats.abs_max_bits = lanes.abs_max_bits[0];
  return stats;
}

}  // namespace gradops::cpu
