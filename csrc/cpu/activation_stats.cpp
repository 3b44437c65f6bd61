#include "cpu/activation_stats.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "cpu/isa.h"

namespace gradops::cpu {
namespace {

// 16 KiB of float32: a chunk is read three times, and stays in the first-level cache with its bins.
constexpr int64_t kChunk = 4096;

// Lanes of a chunk's reduction, fixed as they decide the order of additions.
constexpr int kLanes = 32;

// Waking a thread takes as long as about so many chunks.
constexpr int64_t kGrain = 8;

struct FirstSums {
  float sum;
  int32_t abs_max_bits;
  int32_t near_zero;
};

template <bool kInScale>
GRADOPS_HD FirstSums first_look(const float* __restrict x, int64_t n, float near_zero, float inv_scale,
                                uint8_t* __restrict bins) {
  alignas(64) float sum[kLanes] = {};
  alignas(64) int32_t abs_max_bits[kLanes] = {};
  alignas(64) int32_t near[kLanes] = {};
  const auto add = [&](int64_t i, int lane) __attribute__((always_inline)) {
    sum[lane] += finite_in_scale(x[i], kInScale ? inv_scale : 1.0f);
    const int32_t bits = finite_abs_bits(x[i]);
    abs_max_bits[lane] = bits > abs_max_bits[lane] ? bits : abs_max_bits[lane];
    near[lane] += fabsf(x[i]) <= near_zero;
    bins[i] = static_cast<uint8_t>(activation_bin(x[i]));
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      sum[lane] += sum[lane + width];
      abs_max_bits[lane] = std::max(abs_max_bits[lane], abs_max_bits[lane + width]);
      near[lane] += near[lane + width];
    }
  }
  return {sum[0], abs_max_bits[0], near[0]};
}

struct Deviations {
  float sum;
  float squares;
};

template <bool kInScale>
GRADOPS_HD Deviations deviations(const float* __restrict x, int64_t n, float mean, float inv_scale) {
  alignas(64) float sum[kLanes] = {};
  alignas(64) float squares[kLanes] = {};
  const auto add = [&](int64_t i, int lane) __attribute__((always_inline)) {
    const float apart = deviation(x[i], kInScale ? inv_scale : 1.0f, mean);
    sum[lane] += apart;
    squares[lane] += apart * apart;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      sum[lane] += sum[lane + width];
      squares[lane] += squares[lane + width];
    }
  }
  return {sum[0], squares[0]};
}

GRADOPS_ISA_CLONES(FirstLook, first_look<kInScale>, bool kInScale, FirstSums,
                   (const float* x, int64_t n, float near_zero, float inv_scale, uint8_t* bins),
                   (x, n, near_zero, inv_scale, bins));
GRADOPS_ISA_CLONES(SecondLook, deviations<kInScale>, bool kInScale, Deviations,
                   (const float* x, int64_t n, float mean, float inv_scale), (x, n, mean, inv_scale));

// Several tables, since a value is often counted where the one before it was, and would wait for that.
constexpr int kTables = 4;
using Counts = std::array<int64_t, kBins + 1>;

void count(const uint8_t* bins, int64_t n, Counts& counts) {
  uint32_t tables[kTables][kBins + 1] = {};
  int64_t i = 0;
  for (; i + kTables <= n; i += kTables) {
    for (int table = 0; table < kTables; ++table) ++tables[table][bins[i + table]];
  }
  for (; i < n; ++i) ++tables[0][bins[i]];
  for (int bin = 0; bin <= kBins; ++bin) {
    for (int table = 0; table < kTables; ++table) counts[bin] += tables[table][bin];
  }
}

// Adds a chunk's counts and largest value to `stats`, and returns its moments.
Moments add_chunk(const float* x, int64_t n, float near_zero, ActivationStats& stats) {
  alignas(64) uint8_t bins[kChunk];
  const int isa = static_cast<int>(current_isa());
  FirstSums first = FirstLook<false>::table[isa](x, n, near_zero, 1.0f, bins);
  const int64_t nonfinite_before = stats.histogram[kBins];
  count(bins, n, stats.histogram);
  const int64_t finite = n - (stats.histogram[kBins] - nonfinite_before);
  stats.abs_max_bits = std::max(stats.abs_max_bits, first.abs_max_bits);
  stats.near_zero += first.near_zero;
  if (finite == 0) return {};
  const float inv_scale = inv_scale_for(first.abs_max_bits);
  const bool plain = inv_scale == 1.0f;
  if (!plain) first.sum = FirstLook<true>::table[isa](x, n, near_zero, inv_scale, bins).sum;
  const float mean = first.sum / static_cast<float>(finite);
  const auto* second = plain ? SecondLook<false>::table : SecondLook<true>::table;
  const Deviations apart = second[isa](x, n, mean, inv_scale);
  return Moments::in_scale(static_cast<double>(finite), mean, apart.sum, apart.squares, inv_scale);
}

void merge_counts(ActivationStats& all, const ActivationStats& part) {
  all.abs_max_bits = std::max(all.abs_max_bits, part.abs_max_bits);
  all.near_zero += part.near_zero;
  for (int bin = 0; bin <= kBins; ++bin) all.histogram[bin] += part.histogram[bin];
}

}  // namespace

ActivationStats activation_stats(const TensorView& view, int64_t numel, float near_zero) {
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  std::vector<Moments> moments(chunks);
  ActivationStats all;
  std::mutex merging;
  at::parallel_for(0, chunks, kGrain, [&](int64_t first, int64_t last) {
    alignas(64) float scratch[kChunk];
    ActivationStats part;
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * kChunk, n = std::min(kChunk, numel - begin);
      moments[i] = add_chunk(load(view, begin, n, scratch), n, near_zero, part);
    }
    const std::lock_guard lock(merging);  // whole numbers: the same in whatever order
    merge_counts(all, part);
  });
  for (const Moments& chunk : moments) all.moments.merge(chunk);
  return all;
}

}  // namespace gradops::cpu
