#include "cpu/agc.h"

#include "cpu/isa.h"

namespace gradops::cpu {
namespace {

// Element i of a piece belongs to lane i % kWidth, whatever the vector width: one AVX-512 register of doubles.
template <int kWidth>
GRADOPS_HD double sum_of_squares(const float* __restrict values, int64_t n, const Unscaling unscaling) {
  double lanes[kWidth] = {};
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    for (int lane = 0; lane < kWidth; ++lane) {
      const double x = clamp_grad(values[i + lane] * unscaling.inv_scale, unscaling.clip_value);
      lanes[lane] += x * x;
    }
  }
  for (int lane = 0; i + lane < n; ++lane) {
    const double x = clamp_grad(values[i + lane] * unscaling.inv_scale, unscaling.clip_value);
    lanes[lane] += x * x;
  }
  for (int width = kWidth / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

GRADOPS_ISA_CLONES(SumOfSquares, sum_of_squares<kWidth>, int kWidth, double,
                   (const float* values, int64_t n, const Unscaling& unscaling), (values, n, unscaling));

GRADOPS_HD void clip_run(const float* grad, int64_t n, const StepDecision decision, const float coef, float* clipped) {
  for (int64_t i = 0; i < n; ++i) {
    clipped[i] = clamp_grad(grad[i] * decision.inv_scale, decision.clip_value) * decision.clip_coef * coef;
  }
}

}  // namespace

void unit_squares_chunk(const float* grad, const float* param, int64_t begin, int64_t n, const Units& units,
                        const Unscaling& unscaling, UnitSquares* pieces) {
  const auto sum = SumOfSquares<8>::table[static_cast<int>(current_isa())];
  for_each_piece(units, begin, n, [&](int64_t, int64_t first, int64_t length) {
    *pieces++ = {sum(grad + first, length, unscaling), sum(param + first, length, Unscaling{})};
  });
}

void clip_units_chunk(const float* grad, int64_t begin, int64_t n, const Units& units, const float* coefs,
                      const StepDecision& decision, float* clipped) {
  for_each_piece(units, begin, n, [&](int64_t unit, int64_t first, int64_t length) {
    clip_run(grad + first, length, decision, coefs[unit], clipped + first);
  });
}

}  // namespace gradops::cpu
