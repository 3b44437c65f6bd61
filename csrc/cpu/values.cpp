// Arithmetic on the values of one chunk around its update.
#include "cpu/average.h"
#include "cpu/kernels.h"

namespace gradops::cpu {
namespace {

GRADOPS_HD void scale_values(float* __restrict values, int64_t n, const float coef) {
  for (int64_t i = 0; i < n; ++i) values[i] *= coef;
}

GRADOPS_HD void add_values(const float* __restrict kept, float* __restrict values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] += kept[i];
}

GRADOPS_HD void subtract_rounded(const float* __restrict values, float* __restrict rounded, int64_t n) {
  for (int64_t i = 0; i < n; ++i) rounded[i] = left_by_rounding(values[i], rounded[i]);
}

GRADOPS_HD void subtract_values(const float* __restrict after, float* __restrict before, int64_t n) {
  for (int64_t i = 0; i < n; ++i) before[i] = after[i] - before[i];
}

}  // namespace

void subtract_chunk(const float* after, float* before, int64_t n) { subtract_values(after, before, n); }

void add_chunk(const float* kept, float* values, int64_t n) { add_values(kept, values, n); }

void left_by_rounding_chunk(const float* values, float* rounded, int64_t n) { subtract_rounded(values, rounded, n); }

void average_chunk(const float* values, float* averages, int64_t n, float weight) {
  average_values(values, averages, n, weight);
}

void scale_chunk(float* values, int64_t n, float coef) { scale_values(values, n, coef); }

}  // namespace gradops::cpu
