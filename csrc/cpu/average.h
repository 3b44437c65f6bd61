// The average of values, for kernels that take their vector width from the function around them.
#pragma once

#include "math/ema.h"

namespace gradops::cpu {

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
