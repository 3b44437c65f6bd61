// The CPU kernels: each works on one chunk of contiguous float32 values and runs on one thread.
#pragma once

#include <array>

#include "math/grad_stats.h"
#include "math/update.h"

namespace gradops::cpu {

// Elements of a chunk: 32 KiB of float32, so that what one pass over a chunk read is still in the cache for the next.
constexpr int64_t kChunk = 8192;

struct Norm {
  NormType type = NormType::kL2;
  double p = 2.0;
};

// Statistics of one chunk; `n` at most kChunk.
ChunkStats stats_of_chunk(const float* values, int64_t n, const Unscaling& unscaling, const Norm& norm);

// The same of `values` that have been gathered in lanes, plainly and for the L2 norm; uses the lanes up.
struct StatLanes;
ChunkStats stats_of_lanes(StatLanes& lanes, const float* values, int64_t n);

// The same of several whole chunks. Read side by side, since a core fetches several streams of memory faster than one.
constexpr int kSideBySide = 4;
using ChunksOfValues = std::array<const float*, kSideBySide>;
void stats_side_by_side(const ChunksOfValues& chunks, const Unscaling& unscaling, const Norm& norm, ChunkStats* stats);

// What an update does besides with the new `param`; nothing where a pointer is null.
struct UpdateExtras {
  float* averages = nullptr;  // moved to `param` by ema_weight
  float ema_weight = 0.0f;
  float* moved = nullptr;  // takes what was added to `param`
  StatLanes* moved_lanes = nullptr;
  StatLanes* param_lanes = nullptr;
};

// The values of one chunk of one parameter. Moments that the row's variant does not use are null.
struct ChunkValues {
  float* param;
  const float* grad;
  float* moments[kMaxMoments] = {};
  UpdateExtras extras = {};
};

// A rule's update of one chunk: defined in update_chunk.h, compiled in cpu/rules.
template <UpdateRule Rule>
void update_chunk(const ChunkValues& chunk, int64_t n, const StepDecision& decision, const RowRule& rule);
using UpdateChunk = void (*)(const ChunkValues& chunk, int64_t n, const StepDecision& decision, const RowRule& rule);

// after - before into `before`: what an update has moved.
void subtract_chunk(const float* after, float* before, int64_t n);

// A parameter and what rounding took off it, as one number.
void add_chunk(const float* kept, float* values, int64_t n);

// What rounding takes off `values`, which are stored as `rounded`, into `rounded`.
void left_by_rounding_chunk(const float* values, float* rounded, int64_t n);

// Moves averages of values to them, by math/ema.h's weight.
void average_chunk(const float* values, float* averages, int64_t n, float weight);

// x * coef for every element, rounded to float32.
void scale_chunk(float* values, int64_t n, float coef);

}  // namespace gradops::cpu
