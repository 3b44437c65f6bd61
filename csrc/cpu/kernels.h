// The CPU kernels: each works on one chunk of contiguous float32 values and runs on one thread.
#pragma once

#include "math/grad_stats.h"
#include "math/update.h"

namespace gradops::cpu {

// Elements of a chunk: 32 KiB of float32, so that what one pass over a chunk read is still in the cache for the next.
constexpr int64_t kChunk = 8192;

// Lanes of a chunk's reduction. Fixed, because it decides the order of additions and so the bits of a norm; two AVX-512
// registers, which hides an addition's latency.
constexpr int kLanes = 32;

// Statistics of one chunk; `n` at most kChunk.
ChunkStats grad_stats_chunk(const float* grad, int64_t n, const Unscaling& unscaling, NormType norm_type, float p);

// The values of one chunk of one parameter. Moments that the row's variant does not use are null, as is `moved`, which
// takes what the update adds to `param`, where nobody asks for it.
struct ChunkValues {
  float* param;
  const float* grad;
  float* moments[kMaxMoments] = {};
  float* moved = nullptr;
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
