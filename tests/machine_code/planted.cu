// One kernel as it should be and, after it, the same with one fault each: every gate must catch its own.
#include <cstdint>

#include "math/rules/adam.h"

using namespace gradops;

namespace {

constexpr int kThreads = 512;

struct Arrays {
  float *param, *exp_avg, *exp_avg_sq;
  const float* grad;
};

struct alignas(16) Vec {
  float value[4];
};

// Everything that an update needs to know.
struct Numbers {
  StepDecision decision;
  RowRule row;
};

__device__ Vec load(const float* array, int64_t i) { return reinterpret_cast<const Vec*>(array)[i]; }

__device__ void store(float* array, int64_t i, Vec vec) { reinterpret_cast<Vec*>(array)[i] = vec; }

// For an array off its alignment; the compiler joins the stores of an aligned one.
__device__ void store_one_by_one(float* array, int64_t i, Vec vec) {
  for (int lane = 0; lane < 4; ++lane) array[4 * i + lane + 1] = vec.value[lane];
}

__device__ float updated(float param, float grad, float& exp_avg, float& exp_avg_sq, const Numbers& numbers) {
  float moments[Adam::kMoments] = {exp_avg, exp_avg_sq};
  const auto coefs = own_numbers<Adam::Coefs>(numbers.row.own);
  param = update_element<Adam, Adam::kPlain, WeightDecay::kDecoupled>(param, grad, moments, numbers.decision,
                                                                      numbers.row, coefs);
  exp_avg = moments[0];
  exp_avg_sq = moments[1];
  return param;
}

template <void (*kStore)(float*, int64_t, Vec) = store, typename Real = float>
__device__ float update(const Arrays& a, int64_t i, Vec grad, const Numbers& numbers, Real factor = 1) {
  Vec param = load(a.param, i), exp_avg = load(a.exp_avg, i), exp_avg_sq = load(a.exp_avg_sq, i);
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const float scaled = static_cast<float>(grad.value[lane] * factor);
    param.value[lane] = updated(param.value[lane], scaled, exp_avg.value[lane], exp_avg_sq.value[lane], numbers);
  }
  kStore(a.param, i, param);
  kStore(a.exp_avg, i, exp_avg);
  kStore(a.exp_avg_sq, i, exp_avg_sq);
  return param.value[0];
}

// Reads gradients into registers, waits, updates with them: the parking of the one-launch step.
template <int kParked>
__device__ void park_and_update(const Arrays& a, const Numbers& numbers, int rotation) {
  Vec parked[kParked];
#pragma unroll
  for (int slot = 0; slot < kParked; ++slot) parked[slot] = load(a.grad, slot * int64_t{kThreads} + threadIdx.x);
  __syncthreads();
#pragma unroll
  for (int slot = 0; slot < kParked; ++slot) {
    update(a, slot * int64_t{kThreads} + threadIdx.x, parked[(slot + rotation) % kParked], numbers);
  }
}

}  // namespace

#define KERNEL(name) extern "C" __global__ void __launch_bounds__(kThreads, 1) name
#define FOR_EACH(i, n) for (int64_t i = threadIdx.x; i < n; i += kThreads)

// float64 once a launch, outside the loop, is right.
KERNEL(good_kernel)(Arrays a, int64_t vecs, StepDecision decision, HyperParams hyper, double step) {
  const Numbers numbers{decision, row_rule<Adam>(hyper, {hyper.lr, step})};
  FOR_EACH(i, vecs) update(a, i, load(a.grad, i), numbers);
}

// So are float64 and narrow loads once a chunk, outside the elements' loop.
KERNEL(chunked_kernel)(Arrays a, const int* chunks, int64_t count, Numbers numbers, double* sum) {
  double total = 0.0;
  for (int64_t chunk = blockIdx.x; chunk < count; chunk += gridDim.x) {
    float last = 0.0f;
    const int64_t end = chunks[chunk + 1];
    for (int64_t i = chunks[chunk] + threadIdx.x; i < end; i += kThreads) {
      last = update(a, i, load(a.grad, i), numbers);
    }
    total += last;
  }
  sum[threadIdx.x] = total;
}

KERNEL(parking_kernel)(Arrays a, Numbers numbers) { park_and_update<16>(a, numbers, 0); }

KERNEL(double_kernel)(Arrays a, int64_t vecs, Numbers numbers, double factor) {
  FOR_EACH(i, vecs) update(a, i, load(a.grad, i), numbers, factor);
}

// In the elements' loop, but not in the expression of an element.
KERNEL(double_sum_kernel)(Arrays a, int64_t vecs, Numbers numbers, double* sum) {
  double total = 0.0;
  FOR_EACH(i, vecs) total += update(a, i, load(a.grad, i), numbers);
  sum[threadIdx.x] = total;
}

// In a subroutine of the loop.
__noinline__ __device__ float halved(float x, double half) { return static_cast<float>(x * half); }

KERNEL(double_call_kernel)(Arrays a, int64_t vecs, Numbers numbers, double half) {
  FOR_EACH(i, vecs) {
    Vec grad = load(a.grad, i);
    for (int lane = 0; lane < 4; ++lane) grad.value[lane] = halved(grad.value[lane], half);
    update(a, i, grad, numbers);
  }
}

KERNEL(scalar_kernel)(Arrays a, int64_t n, Numbers numbers) {
  FOR_EACH(i, n) {
    float exp_avg = a.exp_avg[i], exp_avg_sq = a.exp_avg_sq[i];
    a.param[i] = updated(a.param[i], a.grad[i], exp_avg, exp_avg_sq, numbers);
    a.exp_avg[i] = exp_avg;
    a.exp_avg_sq[i] = exp_avg_sq;
  }
}

KERNEL(scalar_load_kernel)(Arrays a, int64_t vecs, Numbers numbers) {
  FOR_EACH(i, vecs) {
    Vec grad;
    for (int lane = 0; lane < 4; ++lane) grad.value[lane] = a.grad[4 * i + lane + 1];
    update(a, i, grad, numbers);
  }
}

KERNEL(scalar_store_kernel)(Arrays a, int64_t vecs, Numbers numbers) {
  FOR_EACH(i, vecs) update<store_one_by_one>(a, i, load(a.grad, i), numbers);
}

// 40 vectors are 160 registers, where 512 threads leave 128 to each.
KERNEL(spilling_kernel)(Arrays a, Numbers numbers) { park_and_update<40>(a, numbers, 0); }

// Registers have no run-time index.
KERNEL(local_array_kernel)(Arrays a, Numbers numbers, int rotation) { park_and_update<8>(a, numbers, rotation); }

// Without launch bounds the compiler may give a thread more registers than 512 threads leave to each.
extern "C" __global__ void greedy_kernel(Arrays a, Numbers numbers) { park_and_update<40>(a, numbers, 0); }
