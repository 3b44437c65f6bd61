// Arithmetic on values around an update, for kernels that take their vector width from the function around them.
#pragma once

#include "math/ema.h"

namespace gradops::cpu {

GRADOPS_HD void copy_values(const float* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// after - before, in the place of `before`.
GRADOPS_HD void subtract_values(const float* __restrict after, float* __restrict before, int64_t n) {
  for (int64_t i = 0; i < n; ++i) before[i] = after[i] - before[i];
}

template <bool kFromAverage>
GRADOPS_HD void average_from(const float* __restrict values, float* __restrict averages, int64_t n,
                             const float weight) {
  for (int64_t i = 0; i < n; ++i) averages[i] = averaged<kFromAverage>(averages[i], values[i], weight);
}

// Moves averages of values to them, by math/ema.h's weight.
GRADOPS_HD void average_values(const float* values, float* averages, int64_t n, float weight) {
  if (weight < 0.5f) {
    average_from<true>(values, averages, n, weight);
  } else {
    average_from<false>(values, averages, n, weight);
  }
}

}  // namespace gradops::cpu
