#include <type_traits>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/stat_lanes.h"

namespace gradops::cpu {
namespace {

// Elements of a chunk that are read before the next chunk's, of those that are read side by side: 8 lines of memory.
constexpr int64_t kTurn = 128;

// Whether an unscaling bounds nothing and multiplies by a power of two: the values can then be measured as they are
// stored, which is less work for each, and what was measured be multiplied, which is exact.
bool is_plain(const Unscaling& unscaling) {
  const int32_t bits = float_bits(unscaling.inv_scale);
  return unscaling.clip_value == INFINITY && bits > 0 && bits < kInfBits && (bits & ~kInfBits) == 0;
}

// kPlain leaves the multiplication to look_again.
template <NormType kNorm, bool kPlain>
GRADOPS_HD ChunkStats first_look(const float* values, int64_t n, const Unscaling& unscaling) {
  StatLanes lanes;
  lanes.clear();
  add_to_lanes<kNorm>(values, n, kPlain ? Unscaling{} : unscaling, lanes);
  return merge(lanes);
}

template <NormType kNorm, bool kPlain>
GRADOPS_HD void look_side_by_side(const ChunksOfValues& chunks, const Unscaling& unscaling, ChunkStats* stats) {
  StatLanes lanes[kSideBySide];
  for (StatLanes& each : lanes) each.clear();
  for (int64_t begin = 0; begin < kChunk; begin += kTurn) {
    for (int i = 0; i < kSideBySide; ++i) {
      add_to_kept_lanes<kNorm>(chunks[i] + begin, kTurn, kPlain ? Unscaling{} : unscaling, lanes[i]);
    }
  }
  for (int i = 0; i < kSideBySide; ++i) stats[i] = merge(lanes[i]);
}

#define GRADOPS_LOOK_TEMPLATE NormType kNorm, bool kPlain
#define GRADOPS_LOOK_BODY first_look<kNorm, kPlain>
#define GRADOPS_LOOKS_BODY look_side_by_side<kNorm, kPlain>
GRADOPS_ISA_CLONES(FirstLook, GRADOPS_LOOK_BODY, GRADOPS_LOOK_TEMPLATE, ChunkStats,
                   (const float* values, int64_t n, const Unscaling& unscaling), (values, n, unscaling));
GRADOPS_ISA_CLONES(LookSideBySide, GRADOPS_LOOKS_BODY, GRADOPS_LOOK_TEMPLATE, void,
                   (const ChunksOfValues& chunks, const Unscaling& unscaling, ChunkStats* stats),
                   (chunks, unscaling, stats));

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

// What the first look leaves out.
template <NormType kNorm>
void look_again(const float* values, int64_t n, const Unscaling& unscaling, float p, ChunkStats& stats) {
  if (is_plain(unscaling)) {
    stats.scale = unscaling.inv_scale;
    stats.abs_max_bits = float_bits(bits_float(stats.abs_max_bits) * unscaling.inv_scale);
  }
  if (stats.abs_max_bits >= kInfBits) stats.nonfinite = count_nonfinite(values, n, unscaling);
  if (needs_scale<kNorm>(stats.power_sum, stats.abs_max_bits)) {
    stats.scale = scale_for<kNorm>(largest_clamped(stats.abs_max_bits, unscaling.clip_value));
    stats.power_sum = sum_in_scale(values, n, unscaling, stats.scale, p);
  }
}

// Calls run(norm type, as a constant) and returns what it does.
template <class Run>
auto with_norm(NormType type, const Run& run) {
  switch (type) {
    case NormType::kL1:
      return run(std::integral_constant<NormType, NormType::kL1>());
    case NormType::kL2:
      return run(std::integral_constant<NormType, NormType::kL2>());
    case NormType::kInf:
      return run(std::integral_constant<NormType, NormType::kInf>());
    case NormType::kGeneral:
      return run(std::integral_constant<NormType, NormType::kGeneral>());
  }
  __builtin_unreachable();
}

}  // namespace

ChunkStats stats_of_chunk(const float* values, int64_t n, const Unscaling& unscaling, const Norm& norm) {
  return with_norm(norm.type, [&](auto type) {
    const auto& look = is_plain(unscaling) ? FirstLook<type, true>::table : FirstLook<type, false>::table;
    ChunkStats stats = look[static_cast<int>(current_isa())](values, n, unscaling);
    look_again<type>(values, n, unscaling, static_cast<float>(norm.p), stats);
    return stats;
  });
}

ChunkStats stats_of_lanes(StatLanes& lanes, const float* values, int64_t n) {
  ChunkStats stats = merge(lanes);
  look_again<NormType::kL2>(values, n, Unscaling{}, 2.0f, stats);
  return stats;
}

void stats_side_by_side(const ChunksOfValues& chunks, const Unscaling& unscaling, const Norm& norm, ChunkStats* stats) {
  with_norm(norm.type, [&](auto type) {
    const auto& look = is_plain(unscaling) ? LookSideBySide<type, true>::table : LookSideBySide<type, false>::table;
    look[static_cast<int>(current_isa())](chunks, unscaling, stats);
    for (int i = 0; i < kSideBySide; ++i) {
      look_again<type>(chunks[i], kChunk, unscaling, static_cast<float>(norm.p), stats[i]);
    }
  });
}

}  // namespace gradops::cpu
