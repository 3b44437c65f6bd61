// Statistics of one tensor of activations in one launch: every warp measures strips, the last block merges them.
#include "cuda/activation_stats.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace gradops::cuda {
namespace {

// What a lane adds up of a strip.
struct StripSums {
  float deviations = 0.0f;
  float squares = 0.0f;
  int32_t finite = 0;
  int32_t abs_max_bits = 0;
  int32_t near_zero = 0;
};

GRADOPS_DEVICE int32_t warp_count(int32_t x) {
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) x += __shfl_xor_sync(kFullWarp, x, bit);
  return x;
}

// The mean of a piece's finite values, which a strip's values are held against: near enough to the strip's own that no
// precision is lost, since a piece that lies elsewhere is part of the strip's spread. 0 where nothing is finite.
GRADOPS_DEVICE float mean_of_piece(const float (&x)[16], int32_t n, const Lanes& lanes, float inv_scale) {
  float sum = 0.0f;
  int32_t finite = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const bool counts = lanes.element(i / 4) + i % 4 < n && (float_bits(x[i]) & 0x7fffffff) < kInfBits;
    sum += counts ? x[i] * inv_scale : 0.0f;
    finite += counts;
  }
  sum = warp_sum(sum);
  finite = warp_count(finite);
  return finite > 0 ? sum / static_cast<float>(finite) : 0.0f;
}

GRADOPS_DEVICE void add_values(StripSums& sums, const float (&x)[16], int32_t n, const Lanes& lanes, float inv_scale,
                               float mean, float near_zero, int32_t* histogram) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (lanes.element(i / 4) + i % 4 >= n) continue;
    const float apart = deviation(x[i], inv_scale, mean);
    sums.deviations += apart;
    sums.squares += apart * apart;
    sums.finite += (float_bits(x[i]) & 0x7fffffff) < kInfBits;
    const int32_t abs_bits = finite_abs_bits(x[i]);
    sums.abs_max_bits = abs_bits > sums.abs_max_bits ? abs_bits : sums.abs_max_bits;
    sums.near_zero += fabsf(x[i]) <= near_zero;
    if (histogram != nullptr) atomicAdd(histogram + activation_bin(x[i]), 1);
  }
}

// One look at a strip by a warp; its values are counted where there is a histogram. `mean` is what they are held
// against.
GRADOPS_DEVICE StripSums look(const ActivationArgs& args, int64_t strip, float inv_scale, int32_t* histogram,
                              float& mean) {
  const Lanes lanes(args.x.dtype != Dtype::kFloat32);
  const int64_t begin = strip * kStrip;
  const int64_t left = args.numel - begin;
  StripSums sums;
#pragma unroll 1
  for (int32_t piece = 0; piece < kPiecesPerStrip && int64_t{piece} * kPiece < left; ++piece) {
    const int64_t of_piece = left - int64_t{piece} * kPiece;
    const int32_t n = static_cast<int32_t>(of_piece < kPiece ? of_piece : kPiece);
    float x[16];
    load_piece<2>({args.x, begin + int64_t{piece} * kPiece, n}, 0, lanes, UsedOnce(), x);
    // A piece without finite values has a mean of 0, as have those before it; one with them may have it by chance.
    if (mean == 0.0f) mean = mean_of_piece(x, n, lanes, inv_scale);
    add_values(sums, x, n, lanes, inv_scale, mean, args.near_zero, histogram);
  }
  return sums;
}

GRADOPS_DEVICE void measure_strip(const ActivationArgs& args, int64_t strip, int32_t* histogram, int32_t& abs_max_bits,
                                  int32_t& near_zero) {
  float mean = 0.0f, inv_scale = 1.0f;
  StripSums sums = look(args, strip, inv_scale, histogram, mean);
  const int32_t largest = warp_max(sums.abs_max_bits);
  abs_max_bits = largest > abs_max_bits ? largest : abs_max_bits;
  near_zero += sums.near_zero;
  inv_scale = inv_scale_for(largest);
  if (inv_scale != 1.0f) {
    mean = 0.0f;
    sums = look(args, strip, inv_scale, nullptr, mean);
  }
  const int32_t finite = warp_count(sums.finite);
  const float deviations = warp_sum(sums.deviations), squares = warp_sum(sums.squares);
  if (threadIdx.x % 32 == 0) store_struct(args.strips + strip, Strip{mean, deviations, squares, inv_scale, finite});
}

GRADOPS_DEVICE Moments shuffle_xor(const Moments& moments, int bit) {
  return {__shfl_xor_sync(kFullWarp, moments.n, bit), __shfl_xor_sync(kFullWarp, moments.mean, bit),
          __shfl_xor_sync(kFullWarp, moments.m2, bit)};
}

// The moments of all strips, in an order that depends on their number only; in every thread.
GRADOPS_DEVICE Moments merge_strips(const ActivationArgs& args, Moments (&scratch)[kWarps]) {
  const int64_t strips = strip_count(args.numel);
  Moments total;
  for (int64_t i = threadIdx.x; i < strips; i += kThreads) {
    const Strip strip = load_struct(args.strips + i);
    total.merge(Moments::in_scale(strip.finite, strip.mean, strip.deviations, strip.squares, strip.inv_scale));
  }
#pragma unroll 1
  for (int bit = 1; bit < 32; bit *= 2) total.merge(shuffle_xor(total, bit));  // the first lane's are taken
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = total;
  __syncthreads();
  total = scratch[0];
  for (int warp = 1; warp < kWarps; ++warp) total.merge(scratch[warp]);
  return total;
}

// What everybody added up is read by atomics: nothing older may come out of a cache.
GRADOPS_DEVICE void write_results(const ActivationArgs& args, const Moments& moments) {
  const int32_t thread = threadIdx.x;
  if (thread < kBins) {
    store(args.counts + 4 + thread, static_cast<int64_t>(atomicAdd(args.totals->histogram + thread, 0ull)));
  }
  if (thread != kBins) return;
  unsigned long long negative = 0;
  for (int bin = 0; bin < kBinsPerSign; ++bin) negative += atomicAdd(args.totals->histogram + bin, 0ull);
  store(args.counts, args.numel);
  store(args.counts + 1, static_cast<int64_t>(atomicAdd(&args.totals->near_zero, 0ull)));
  store(args.counts + 2, static_cast<int64_t>(negative));
  store(args.counts + 3, static_cast<int64_t>(atomicAdd(args.totals->histogram + kBins, 0ull)));
  const bool any = moments.n > 0.0;
  store(args.measures, any ? static_cast<float>(moments.mean) : NAN);
  store(args.measures + 1, any ? static_cast<float>(sqrt(moments.m2 / moments.n)) : NAN);
  store(args.measures + 2, any ? bits_float(atomicMax(&args.totals->abs_max_bits, 0)) : NAN);
}

struct BlockState {
  int32_t histogram[kWarps][kBins + 1];
  int32_t last;
  Moments scratch[kWarps];
};

__global__ void __launch_bounds__(kThreads, 2) activation_stats_kernel(const ActivationArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  BlockState& shared = *reinterpret_cast<BlockState*>(memory);
  const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t* histogram = shared.histogram[warp];
  for (int32_t bin = lane; bin <= kBins; bin += 32) histogram[bin] = 0;
  __syncwarp();
  int32_t abs_max_bits = 0, near_zero = 0;
  const int64_t stride = int64_t{gridDim.x} * kWarps;
#pragma unroll 1
  for (int64_t strip = int64_t{blockIdx.x} * kWarps + warp; strip * kStrip < args.numel; strip += stride) {
    measure_strip(args, strip, histogram, abs_max_bits, near_zero);
  }
  near_zero = warp_count(near_zero);
  if (lane == 0) {
    atomicMax(&args.totals->abs_max_bits, abs_max_bits);
    atomicAdd(&args.totals->near_zero, static_cast<unsigned long long>(near_zero));
  }
  __syncthreads();
  for (int32_t bin = threadIdx.x; bin <= kBins; bin += kThreads) {
    unsigned long long count = 0;
    for (int32_t i = 0; i < kWarps; ++i) count += shared.histogram[i][bin];
    if (count != 0) atomicAdd(args.totals->histogram + bin, count);
  }
  __syncthreads();
  // Of one thread, after the barrier: it then stands for what all of the block wrote, and for what all of them read.
  if (threadIdx.x == 0) {
    __threadfence();
    shared.last = atomicAdd(&args.totals->blocks_done, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!shared.last) return;
  write_results(args, merge_strips(args, shared.scratch));
}

}  // namespace

void activation_stats(const ActivationArgs& args, int32_t blocks, Stream stream) {
  launch("activation_stats", activation_stats_kernel, blocks, sizeof(BlockState), false, stream, args);
}

}  // namespace gradops::cuda
