// Memory: the only place where kernels touch it, and the hint that the L2 cache gets with each access.
#pragma once

#ifdef GRADOPS_EMULATE
#include "cuda_on_host.h"
#define GRADOPS_DYNAMIC_SHARED(Type, name) EMU_DYNAMIC_SHARED(Type, name)
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define GRADOPS_DYNAMIC_SHARED(Type, name) extern __shared__ Type name[]
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#define GRADOPS_DEVICE __device__ __forceinline__

namespace gradops::cuda {

// The L2 cache's hint for a line: what is used once leaves first, so that what is read again can stay. As an
// operand where that is known while the kernel runs, as part of the instruction where it is known before.
struct CachePolicy {
  uint64_t bits;

  GRADOPS_DEVICE static CachePolicy used_once() {
    CachePolicy policy{0};
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy.bits));
#endif
    return policy;
  }

  GRADOPS_DEVICE static CachePolicy read_again() {
    CachePolicy policy{0};
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy.bits));
#endif
    return policy;
  }
};
struct UsedOnce {};

template <class T>
GRADOPS_DEVICE T load(const T* p) {
#ifdef GRADOPS_EMULATE
  return emu::load(p);
#else
  __builtin_assume(__isGlobal(p));
  return *p;
#endif
}

template <class T>
GRADOPS_DEVICE void store(T* p, const T& value) {
#ifdef GRADOPS_EMULATE
  emu::store(p, value);
#else
  __builtin_assume(__isGlobal(p));
  *p = value;
#endif
}

GRADOPS_DEVICE uint4 load_vec(const void* p, CachePolicy policy) {
#if __CUDA_ARCH__ >= 800
  uint4 v;
  asm("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p), "l"(policy.bits));
  return v;
#else
  static_cast<void>(policy);
  return load(static_cast<const uint4*>(p));
#endif
}

GRADOPS_DEVICE uint4 load_vec(const void* p, UsedOnce) {
  const uint4* vec = static_cast<const uint4*>(p);
#ifndef GRADOPS_EMULATE
  __builtin_assume(__isGlobal(vec));
#endif
  return __ldcs(vec);
}

GRADOPS_DEVICE void store_vec(void* p, uint4 v) {
  uint4* vec = static_cast<uint4*>(p);
#ifndef GRADOPS_EMULATE
  __builtin_assume(__isGlobal(vec));
#endif
  __stcs(vec, v);
}

// A struct, in the widest words that its size allows; `p` is aligned to them.
template <class T>
using WordOf = std::conditional_t<sizeof(T) % 16 == 0, uint4, uint64_t>;

template <class T>
GRADOPS_DEVICE T load_struct(const T* p) {
  using Word = WordOf<T>;
  static_assert(sizeof(T) % sizeof(Word) == 0);
  Word words[sizeof(T) / sizeof(Word)];
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / sizeof(Word); ++i) words[i] = load(reinterpret_cast<const Word*>(p) + i);
  T value;
  memcpy(&value, words, sizeof(T));
  return value;
}

template <class T>
GRADOPS_DEVICE void store_struct(T* p, const T& value) {
  using Word = WordOf<T>;
  static_assert(sizeof(T) % sizeof(Word) == 0);
  Word words[sizeof(T) / sizeof(Word)];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / sizeof(Word); ++i) store(reinterpret_cast<Word*>(p) + i, words[i]);
}

}  // namespace gradops::cuda
