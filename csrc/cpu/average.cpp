// The average of the values of one chunk.
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "math/ema.h"

namespace gradops::cpu {
namespace {

template <bool kFromAverage>
GRADOPS_HD void average_values(const float* __restrict values, float* __restrict averages, int64_t n,
                               const float weight) {
  for (int64_t i = 0; i < n; ++i) averages[i] = averaged<kFromAverage>(averages[i], values[i], weight);
}

GRADOPS_ISA_CLONES(AverageValues, average_values<kFromAverage>, bool kFromAverage, void,
                   (const float* values, float* averages, int64_t n, float weight), (values, averages, n, weight));

}  // namespace

void average_chunk(const float* values, float* averages, int64_t n, float weight) {
  const auto& table = weight < 0.5f ? AverageValues<true>::table : AverageValues<false>::table;
  table[static_cast<int>(current_isa())](values, averages, n, weight);
}

}  // namespace gradops::cpu
