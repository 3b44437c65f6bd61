// Statistics of one tensor, cut into chunks; see math/activation_stats.h.
#pragma once

#include <array>

#include "cpu/tensor_view.h"
#include "math/activation_stats.h"

namespace gradops::cpu {

struct ActivationStats {
  Moments moments;
  int32_t abs_max_bits = 0;  // of the finite values
  int64_t near_zero = 0;
  std::array<int64_t, kBins + 1> histogram{};  // the last counts what is not finite
};

ActivationStats activation_stats(const TensorView& view, int64_t numel, float near_zero);

}  // namespace gradops::cpu
