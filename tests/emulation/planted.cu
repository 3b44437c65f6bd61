// Small kernels, each sound or with one fault planted in it, that show what the emulator catches.
//   planted <case> <sound|faulty> <first seed> <seeds>     prints a report per launch; returns 3 if a result is wrong
// Without arguments, it lists the cases.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda_on_host.h"
#include "emulator.h"

namespace {

constexpr int kThreads = 64, kBlocks = 4, kElements = 4 * kThreads * kBlocks;

struct Args {
  const float* in;
  float* out;
  float* partials;
  unsigned* ticket;
};

__device__ float block_sum(float x, float* warp_sums, bool plant) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  if (!plant) __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; i++) sum += warp_sums[i];
  return sum;
}

template <bool kPlant>
__global__ void block_sum_kernel(const Args __grid_constant__ args) {
  EMU_SHARED(float[kThreads / 32], warp_sums);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  emu::store(args.out + i, block_sum(emu::load(args.in + i), warp_sums, kPlant));
}

template <bool kPlant>
__global__ void grid_barrier_kernel(const Args __grid_constant__ args) {
  if (threadIdx.x == 0) emu::store(args.partials + blockIdx.x, 1.f + blockIdx.x);
  if constexpr (kPlant) {
    __syncthreads();
  } else {
    cooperative_groups::this_grid().sync();
  }
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; i++) sum += emu::load(args.partials + i);
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x, sum);
}

enum class Missing { kNothing, kRelease, kAcquire };

// The grid barrier by hand. Without the fences the flag still counts right, and only the payload is not ordered.
template <Missing kMissing>
__global__ void hand_barrier_kernel(const Args __grid_constant__ args) {
  emu::store(args.partials + blockIdx.x * blockDim.x + threadIdx.x, 1.f);
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kMissing != Missing::kRelease) __threadfence();
    atomicAdd(args.ticket, 1u);
    while (emu::load_volatile(args.ticket) < gridDim.x) __nanosleep(20);
    if (kMissing != Missing::kAcquire) __threadfence();
  }
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; i++) sum += emu::load(args.partials + i * blockDim.x + threadIdx.x);
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x, sum);
}

// The fence comes before the store that it should cover.
template <bool kPlant>
__global__ void late_store_kernel(const Args __grid_constant__ args) {
  EMU_SHARED(bool, is_last);
  if (threadIdx.x == 0) {
    if (kPlant) __threadfence();
    emu::store(args.partials + blockIdx.x, 1.f);
    if (!kPlant) __threadfence();
    is_last = atomicAdd(args.ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (is_last && threadIdx.x < gridDim.x) emu::store(args.out + threadIdx.x, emu::load(args.partials + threadIdx.x));
}

__device__ void wait_for(const unsigned* flag, unsigned value) {
  while (emu::load_volatile(flag) != value) __nanosleep(20);
}

// Block 1 sees what block 0 stored, overwrites its flag and sets one of its own; block 2 reads both. With the fault
// block 1 hands on the flags alone.
template <bool kPlant>
__global__ void relay_kernel(const Args __grid_constant__ args) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    emu::store(args.partials, 1.f);
    emu::store_release(args.ticket, 1u);
  } else if (blockIdx.x == 1) {
    wait_for(args.ticket, 1);
    if (!kPlant) __threadfence();
    emu::store_volatile(args.ticket, 2u);
    emu::store_volatile(args.ticket + 1, 1u);
  } else if (blockIdx.x == 2) {
    wait_for(args.ticket + 1, 1);
    emu::load_acquire(args.ticket);
    emu::store(args.out, emu::load(args.partials));
  }
}

// The last block overwrites what the others may still have to read.
template <bool kPlant>
__global__ void overwrite_kernel(const Args __grid_constant__ args) {
  const bool overwrites = blockIdx.x == gridDim.x - 1;
  if (!overwrites) emu::load(args.partials + threadIdx.x);
  if (!kPlant) cooperative_groups::this_grid().sync();
  if (overwrites) emu::store(args.partials + threadIdx.x, 1.f);
}

template <bool kPlant>
__global__ void neighbour_kernel(const Args __grid_constant__ args) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  emu::store(args.out + i, 1.f);
  if (!kPlant) __syncwarp();
  emu::store(args.partials + i, emu::load(args.out + (i ^ 1)));
}

template <bool kPlant>
__global__ void static_bounds_kernel(const Args __grid_constant__ args) {
  EMU_SHARED(float[kThreads], row);
  row[threadIdx.x + kPlant] = 1;
  __syncthreads();
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x, row[threadIdx.x]);
}

template <bool kPlant>
__global__ void dynamic_bounds_kernel(const Args __grid_constant__ args) {
  EMU_DYNAMIC_SHARED(float, row);
  row[threadIdx.x + kPlant] = 1;
  __syncthreads();
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x, row[threadIdx.x]);
}

template <bool kPlant>
__global__ void global_bounds_kernel(const Args __grid_constant__ args) {
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x + kPlant * (kElements - kThreads * kBlocks + 7), 1.f);
}

template <bool kPlant>
__global__ void divergent_barrier_kernel(const Args __grid_constant__) {
  if (kPlant && threadIdx.x % 2 == 1) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

template <bool kPlant>
__global__ void left_out_kernel(const Args __grid_constant__) {
  if (kPlant && threadIdx.x == 7) return;
  __syncthreads();
}

template <bool kPlant>
__global__ void exited_lanes_kernel(const Args __grid_constant__ args) {
  if (kPlant && threadIdx.x >= 48) return;
  const float sum = __shfl_xor_sync(~0u, 1.f, 16) + 1;
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x, sum);
}

template <bool kPlant>
__global__ void wrong_mask_kernel(const Args __grid_constant__ args) {
  if (threadIdx.x % 32 >= 16) return;
  const float x = __shfl_sync(0xffffu, 1.f, kPlant ? 16 : 15);
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x, x);
}

template <bool kPlant>
__global__ void early_exit_kernel(const Args __grid_constant__) {
  if (kPlant && blockIdx.x == 1) return;
  cooperative_groups::this_grid().sync();
}

// Waits for more blocks than there are.
template <bool kPlant>
__global__ void deadlock_kernel(const Args __grid_constant__ args) {
  if (threadIdx.x != 0) return;
  atomicAdd(args.ticket, 1u);
  while (atomicAdd(args.ticket, 0u) < gridDim.x + kPlant) __nanosleep(20);
}

template <bool kPlant>
__global__ void misaligned_kernel(const Args __grid_constant__ args) {
  const auto* in = reinterpret_cast<const float4*>(args.in + kPlant);
  emu::store(args.out + blockIdx.x * blockDim.x + threadIdx.x, emu::load(in + threadIdx.x).x);
}

// Copies all but, with the fault, the last three elements; with another, the first chunk in place of the second.
template <bool kDrop, bool kTwice>
__global__ void copy_kernel(const Args __grid_constant__ args) {
  constexpr int n = kElements - 1, vectors = n / 4;
  const unsigned block = kTwice && blockIdx.x == 1 ? 0 : blockIdx.x;
  const unsigned i = block * blockDim.x + threadIdx.x;
  if (i < vectors) {
    const float4 x = emu::load(reinterpret_cast<const float4*>(args.in) + i);
    emu::store(reinterpret_cast<float4*>(args.out) + i, x);
  }
  if (!kDrop && blockIdx.x == 0 && threadIdx.x < n % 4) {
    emu::store(args.out + 4 * vectors + threadIdx.x, emu::load(args.in + 4 * vectors + threadIdx.x));
  }
}

template <bool kPlant>
__global__ void write_grad_kernel(const Args __grid_constant__ args) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float x = emu::load(args.in + i);
  emu::store(kPlant ? const_cast<float*>(args.in + i) : args.out + i, 2 * x);
}

struct Case {
  std::string name;
  void (*sound)(const Args&);
  void (*faulty)(const Args&);
  bool cooperative;
  float expected;  // of each element of `out` that is written
};

const Case kCases[] = {
    {"missing_syncthreads", block_sum_kernel<false>, block_sum_kernel<true>, false, kThreads},
    {"missing_grid_barrier", grid_barrier_kernel<false>, grid_barrier_kernel<true>, true, 1 + 2 + 3 + 4},
    {"missing_release_fence", hand_barrier_kernel<Missing::kNothing>, hand_barrier_kernel<Missing::kRelease>, true,
     kBlocks},
    {"missing_acquire_fence", hand_barrier_kernel<Missing::kNothing>, hand_barrier_kernel<Missing::kAcquire>, true,
     kBlocks},
    {"store_after_fence", late_store_kernel<false>, late_store_kernel<true>, false, 1},
    {"missing_fence_in_relay", relay_kernel<false>, relay_kernel<true>, true, 1},
    {"overwritten_too_soon", overwrite_kernel<false>, overwrite_kernel<true>, true, 0},
    {"missing_syncwarp", neighbour_kernel<false>, neighbour_kernel<true>, false, 1},
    {"static_shared_out_of_bounds", static_bounds_kernel<false>, static_bounds_kernel<true>, false, 1},
    {"dynamic_shared_out_of_bounds", dynamic_bounds_kernel<false>, dynamic_bounds_kernel<true>, false, 1},
    {"global_out_of_bounds", global_bounds_kernel<false>, global_bounds_kernel<true>, false, 1},
    {"divergent_barrier", divergent_barrier_kernel<false>, divergent_barrier_kernel<true>, false, 0},
    {"thread_left_before_barrier", left_out_kernel<false>, left_out_kernel<true>, false, 0},
    {"shuffle_with_exited_lanes", exited_lanes_kernel<false>, exited_lanes_kernel<true>, false, 2},
    {"shuffle_outside_mask", wrong_mask_kernel<false>, wrong_mask_kernel<true>, false, 1},
    {"block_left_before_grid_barrier", early_exit_kernel<false>, early_exit_kernel<true>, true, 0},
    {"grid_barrier_without_cooperation", early_exit_kernel<false>, nullptr, true, 0},
    {"deadlock", deadlock_kernel<false>, deadlock_kernel<true>, true, 0},
    {"misaligned_vector", misaligned_kernel<false>, misaligned_kernel<true>, false, 1},
    {"dropped_tail", copy_kernel<false, false>, copy_kernel<true, false>, false, 1},
    {"chunk_twice", copy_kernel<false, false>, copy_kernel<false, true>, false, 1},
    {"gradient_written", write_grad_kernel<false>, write_grad_kernel<true>, false, 2},
};

// Apart from each other, so that what lies behind an array is no array.
struct alignas(128) Arrays {
  float in[kElements], gap[128], out[kElements], another_gap[128], partials[kElements];
  unsigned ticket[2];
};

// 0, or 3 if an element of `out` was written and is wrong.
int run(const Case& c, bool plant, uint64_t seed) {
  constexpr float kUntouched = -1;
  static Arrays arrays;
  auto& [in, gap, out, another_gap, partials, ticket] = arrays;
  std::fill_n(in, kElements, 1.f);
  std::fill_n(out, kElements, kUntouched);
  std::fill_n(ticket, 2, 0);
  emu::watch("in", in, sizeof(in), sizeof(float), false);
  emu::watch("out", out, sizeof(out), sizeof(float), true);
  emu::watch("partials", partials, sizeof(partials), sizeof(float), true);
  emu::watch("ticket", ticket, sizeof(ticket), sizeof(unsigned), true);
  const bool fault_is_in_kernel = plant && c.faulty != nullptr;
  const bool cooperative = c.cooperative && (fault_is_in_kernel || !plant);
  const emu::Report report = emu::launch(fault_is_in_kernel ? c.faulty : c.sound, dim3(kBlocks), dim3(kThreads),
                                         kThreads * sizeof(float), cooperative, seed, Args{in, out, partials, ticket});
  emu::unwatch_all();
  std::puts(report.json().c_str());
  const bool right = std::all_of(out, out + kElements, [&](float x) { return x == kUntouched || x == c.expected; });
  return report.ok() && !right ? 3 : 0;
}

}  // namespace

int main(int count, char** words) {
  if (count == 5) {
    const auto* found = std::find_if(std::begin(kCases), std::end(kCases), [&](auto& c) { return words[1] == c.name; });
    const bool plant = words[2] == std::string("faulty");
    const int first = std::atoi(words[3]), seeds = std::atoi(words[4]);
    int result = 0;
    for (int seed = first; seed < first + seeds; seed++) result = std::max(result, run(*found, plant, seed));
    return result;
  }
  for (const Case& c : kCases) std::puts(c.name.c_str());
}
