// Adaptive gradient clipping (Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without
// Normalization", equation 3): every unit's gradient is clipped by the size of the unit's weights.
#pragma once

#include "math/common.h"

namespace gradops {

// Where a parameter's units lie in the order in which its elements are walked. A unit is the filter of a convolution,
// the row of a matrix, all that has one index in the first dimension.
struct Units {
  int64_t run = 1;    // elements of one unit that follow each other
  int64_t count = 0;  // run i is of unit i % count; 0 for a parameter that is not clipped by units

  bool operator==(const Units&) const = default;
};

// Weights that are smaller count as this large, so that a unit of zeros may leave zero; the paper's value.
constexpr double kAgcEps = 1e-3;

// What a unit's clamped gradient is multiplied by. `ratio` is the largest norm of a gradient, relative to the weights'.
GRADOPS_HD float agc_coef(double param_norm, double grad_norm, double ratio) {
  const double limit = ratio * (param_norm < kAgcEps ? kAgcEps : param_norm);
  return grad_norm > limit ? static_cast<float>(limit / grad_norm) : 1.0f;
}

}  // namespace gradops
