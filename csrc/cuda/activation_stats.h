// One tensor's statistics on a GPU: the kernel's arguments. No torch and no CUDA header.
#pragma once

#include "cuda/launch.h"
#include "math/activation_stats.h"

namespace gradops::cuda {

// Elements of which a warp keeps one set of moments: few enough to share a small tensor among warps, many enough that
// merging them all takes no time.
constexpr int kPiecesPerStrip = 8;
constexpr int64_t kStrip = int64_t{kPiecesPerStrip} * kPiece;

GRADOPS_HD constexpr int64_t strip_count(int64_t numel) { return (numel + kStrip - 1) / kStrip; }

// A warp a strip, up to more blocks than any GPU holds at once; none waits for another.
constexpr int32_t activation_blocks(int64_t numel) {
  return static_cast<int32_t>(std::clamp<int64_t>((strip_count(numel) + kWarps - 1) / kWarps, 1, 1024));
}

// What a warp leaves of a strip: sums of the finite values' deviations from `mean` and of their squares, in a scale.
struct alignas(16) Strip {
  float mean;
  float deviations;
  float squares;
  float inv_scale;
  int32_t finite;
};

// What blocks add up, in whole numbers, so that their order does not matter; zeros before the launch.
struct ActivationTotals {
  unsigned long long near_zero;
  unsigned long long histogram[kBins + 1];  // the last counts what is not finite
  int32_t abs_max_bits;                     // of the finite values
  uint32_t blocks_done;
};

struct ActivationArgs {
  View x;
  int64_t numel;
  float near_zero;
  Strip* strips;
  ActivationTotals* totals;
  float* measures;  // mean, std, abs_max
  int64_t* counts;  // elements, near zero, negative, not finite, and kBins of the histogram
};

// Throws std::runtime_error if the launch fails.
void activation_stats(const ActivationArgs& args, int32_t blocks, Stream stream);

}  // namespace gradops::cuda
