#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace gradops::cpu {
namespace {

// Elements of a page of memory, at whose end the hardware stops to foresee what is read next.
constexpr int64_t kPage = 1024;

GRADOPS_HD void prefetch_page(const float* start) {
  for (int line = 0; line < 4; ++line) __builtin_prefetch(start + 16 * line);
}

// Element i belongs to lane i % kLanes, in a full row of lanes as in the tail. kPlain is for an unscaling that changes
// nothing.
template <NormType kNorm, bool kPlain>
GRADOPS_HD ChunkStats first_look(const float* __restrict grad, int64_t n, const Unscaling given) {
  const Unscaling unscaling = kPlain ? Unscaling{} : given;
  alignas(64) float power_sum[kLanes];
  alignas(64) int32_t abs_max_bits[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    power_sum[lane] = 0.0f;
    abs_max_bits[lane] = 0;
  }
  int64_t i = 0;
  while (i + kLanes <= n) {
    prefetch_page(grad + i + 2 * kPage);
    const int64_t end = n - i < kPage ? n : i + kPage;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        add_element<kNorm>(grad[i + lane], unscaling, power_sum[lane], abs_max_bits[lane]);
      }
    }
  }
  for (int lane = 0; i + lane < n; ++lane) {
    add_element<kNorm>(grad[i + lane], unscaling, power_sum[lane], abs_max_bits[lane]);
  }
#pragma GCC unroll 5  // in registers then, which a tensor of 64 elements notices
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      power_sum[lane] += power_sum[lane + width];
      const int32_t other = abs_max_bits[lane + width];
      abs_max_bits[lane] = abs_max_bits[lane] > other ? abs_max_bits[lane] : other;
    }
  }
  ChunkStats stats;
  stats.power_sum = power_sum[0];
  stats.abs_max_bits = abs_max_bits[0];
  return stats;
}

#define GRADOPS_LOOK_TEMPLATE NormType kNorm, bool kPlain
#define GRADOPS_LOOK_BODY first_look<kNorm, kPlain>
GRADOPS_ISA_CLONES(FirstLook, GRADOPS_LOOK_BODY, GRADOPS_LOOK_TEMPLATE, ChunkStats,
                   (const float* grad, int64_t n, const Unscaling& unscaling), (grad, n, unscaling));

// Rare, so compiled once: the values in a scale of their own, in the lanes of the first look.
float sum_in_scale(const float* grad, int64_t n, const Unscaling& unscaling, float power_scale, float p) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kLanes] += power_in_scale(grad[i], unscaling, power_scale, p);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

int32_t count_nonfinite(const float* grad, int64_t n, const Unscaling& unscaling) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += (float_bits(grad[i] * unscaling.inv_scale) & 0x7fffffff) >= kInfBits;
  return count;
}

template <NormType kNorm>
ChunkStats stats_of(const float* grad, int64_t n, const Unscaling& unscaling, float p) {
  const bool plain = unscaling.inv_scale == 1.0f && unscaling.clip_value == INFINITY;
  const auto& look = plain ? FirstLook<kNorm, true>::table : FirstLook<kNorm, false>::table;
  ChunkStats stats = look[static_cast<int>(current_isa())](grad, n, unscaling);
  if (stats.abs_max_bits >= kInfBits) stats.nonfinite = count_nonfinite(grad, n, unscaling);
  if (needs_scale<kNorm>(stats.power_sum, stats.abs_max_bits)) {
    stats.scale = scale_for<kNorm>(largest_clamped(stats.abs_max_bits, unscaling.clip_value));
    stats.power_sum = sum_in_scale(grad, n, unscaling, stats.scale, p);
  }
  return stats;
}

}  // namespace

ChunkStats grad_stats_chunk(const float* grad, int64_t n, const Unscaling& unscaling, NormType norm_type, float p) {
  switch (norm_type) {
    case NormType::kL1:
      return stats_of<NormType::kL1>(grad, n, unscaling, p);
    case NormType::kL2:
      return stats_of<NormType::kL2>(grad, n, unscaling, p);
    case NormType::kInf:
      return stats_of<NormType::kInf>(grad, n, unscaling, p);
    case NormType::kGeneral:
      return stats_of<NormType::kGeneral>(grad, n, unscaling, p);
  }
  __builtin_unreachable();
}

}  // namespace gradops::cpu
