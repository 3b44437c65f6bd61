// CUDA's language and built-in functions for kernel sources that g++ compiles; included in place of cuda_runtime.h and
// cooperative_groups.h. Half types and vector types are the toolkit's own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "device.h"

#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
// In `const Args __grid_constant__ args`: not copied for each thread.
#define __grid_constant__ &
// Would be a local variable of each thread.
#define __shared__ _Pragma("GCC error \"declare shared memory with EMU_SHARED or EMU_DYNAMIC_SHARED\"")

#define threadIdx (::emu::here->thread)
#define blockIdx (::emu::here->block)
#define blockDim (::emu::here->block_dim)
#define gridDim (::emu::here->grid_dim)
constexpr int warpSize = 32;

#define EMU_SHARED(Type, name)                                \
  auto& name = ::emu::shared<std::type_identity_t<Type>>([] { \
    static char site;                                         \
    return &site;                                             \
  }())
#define EMU_DYNAMIC_SHARED(Type, name) Type* name = static_cast<Type*>(::emu::dynamic_shared())

namespace emu {

template <class T>
T& shared(const void* site) {
  return *static_cast<T*>(static_shared(site, sizeof(T), alignof(T)));
}

template <class T>
T load(const T* p, Where where = Where::current()) {
  touch(p, sizeof(T), Access::kLoad, where);
  return *p;
}

template <class T>
void store(T* p, std::type_identity_t<T> value, Where where = Where::current()) {
  touch(p, sizeof(T), Access::kStore, where);
  *p = value;
}

template <class T>
T load_volatile(const T* p, Where where = Where::current()) {
  touch(p, sizeof(T), Access::kPoll, where);
  T value;
  __atomic_load(p, &value, __ATOMIC_RELAXED);
  return value;
}

template <class T>
void store_volatile(T* p, std::type_identity_t<T> value, Where where = Where::current()) {
  touch(p, sizeof(T), Access::kPublish, where);
  __atomic_store(p, &value, __ATOMIC_RELAXED);
}

template <class T>
T load_acquire(const T* p, Where where = Where::current()) {
  const T value = load_volatile(p, where);
  fence();
  return value;
}

template <class T>
void store_release(T* p, std::type_identity_t<T> value, Where where = Where::current()) {
  fence();
  store_volatile(p, value, where);
}

// No float: sums by float atomics would differ from run to run.
template <class T, class Rule>
T read_modify_write(T* p, Rule rule, Where where) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  touch(p, sizeof(T), Access::kAtomic, where);
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, rule(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(WarpOp::kShuffle, mask, bits, source, where);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emu

// Default arguments name the line of the kernel that called.
#define EMU_WHERE ::emu::Where where = ::emu::Where::current()

inline void __syncthreads(EMU_WHERE) { emu::block_barrier(emu::Vote::kCount, 0, where); }
inline int __syncthreads_count(int p, EMU_WHERE) { return emu::block_barrier(emu::Vote::kCount, p, where); }
inline int __syncthreads_and(int p, EMU_WHERE) { return emu::block_barrier(emu::Vote::kAnd, p, where); }
inline int __syncthreads_or(int p, EMU_WHERE) { return emu::block_barrier(emu::Vote::kOr, p, where); }
inline void __threadfence() { emu::fence(); }
// Weaker than what the emulator's block barrier and race detection ask for, so that nothing may lean on it.
inline void __threadfence_block() {}
inline void __nanosleep(unsigned, EMU_WHERE) { emu::pause(where); }

inline void __syncwarp(unsigned mask = ~0u, EMU_WHERE) { emu::warp_operation(emu::WarpOp::kSync, mask, 0, 0, where); }
inline unsigned __ballot_sync(unsigned mask, int p, EMU_WHERE) {
  return static_cast<unsigned>(emu::warp_operation(emu::WarpOp::kBallot, mask, p != 0, 0, where));
}
inline int __any_sync(unsigned mask, int p, EMU_WHERE) { return __ballot_sync(mask, p, where) != 0; }
inline int __all_sync(unsigned mask, int p, EMU_WHERE) { return __ballot_sync(mask, p, where) == mask; }

// A lane outside the segment of `width` lanes reads its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_WHERE) {
  const unsigned segment = emu::lane() / width * width;
  return emu::shuffle(mask, value, segment + static_cast<unsigned>(source) % width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_WHERE) {
  const unsigned lane = emu::lane(), source = lane ^ lanes;
  return emu::shuffle(mask, value, source / width <= lane / width ? source : lane, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMU_WHERE) {
  const unsigned lane = emu::lane(), source = lane + lanes;
  return emu::shuffle(mask, value, source / width == lane / width ? source : lane, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMU_WHERE) {
  const unsigned lane = emu::lane();
  return emu::shuffle(mask, value, lane % width >= lanes ? lane - lanes : lane, where);
}

#define EMU_REDUCE(name, op)                                                                   \
  inline unsigned __reduce_##name##_sync(unsigned mask, unsigned value, EMU_WHERE) {           \
    return static_cast<unsigned>(emu::warp_operation(emu::WarpOp::op, mask, value, 0, where)); \
  }
EMU_REDUCE(add, kAdd)
EMU_REDUCE(min, kMin)
EMU_REDUCE(max, kMax)
EMU_REDUCE(and, kAnd)
EMU_REDUCE(or, kOr)
EMU_REDUCE(xor, kXor)
#undef EMU_REDUCE

#define EMU_ATOMIC(name, rule)                                                 \
  template <class T>                                                           \
  T atomic##name(T* p, std::type_identity_t<T> v, EMU_WHERE) {                 \
    return emu::read_modify_write(p, [=](T old) -> T { return rule; }, where); \
  }
EMU_ATOMIC(Add, old + v)
EMU_ATOMIC(Sub, old - v)
EMU_ATOMIC(Min, v < old ? v : old)
EMU_ATOMIC(Max, v > old ? v : old)
EMU_ATOMIC(And, old& v)
EMU_ATOMIC(Or, old | v)
EMU_ATOMIC(Xor, old ^ v)
EMU_ATOMIC(Exch, v)
EMU_ATOMIC(Inc, old >= v ? 0 : old + 1)
#undef EMU_ATOMIC
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v, EMU_WHERE) {
  return emu::read_modify_write(p, [=](T old) { return old == compare ? v : old; }, where);
}

#define EMU_LOAD(name)            \
  template <class T>              \
  T name(const T* p, EMU_WHERE) { \
    return emu::load(p, where);   \
  }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
#undef EMU_LOAD
#define EMU_STORE(name)                                       \
  template <class T>                                          \
  void name(T* p, std::type_identity_t<T> value, EMU_WHERE) { \
    emu::store(p, value, where);                              \
  }
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)
#undef EMU_STORE

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

namespace cooperative_groups {

struct grid_group {
  void sync(EMU_WHERE) const { emu::grid_barrier(where); }
};
struct thread_block {
  void sync(EMU_WHERE) const { __syncthreads(where); }
};
inline grid_group this_grid() { return {}; }
inline thread_block this_thread_block() { return {}; }

}  // namespace cooperative_groups
