// What the functions in this folder are compiled with: g++ for the CPU, nvcc for CUDA. No torch and no CUDA header is
// included, so that each can be compiled, tested and read alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GRADOPS_HD __host__ __device__ __forceinline__
#else
// Forced, because each must take the vector width of the function that it is inlined into (see cpu/isa.h).
#define GRADOPS_HD inline __attribute__((always_inline))
#endif

namespace gradops {

GRADOPS_HD int32_t float_bits(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

GRADOPS_HD float bits_float(int32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

constexpr int32_t kInfBits = 0x7f800000;

}  // namespace gradops
