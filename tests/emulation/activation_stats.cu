// What test_activation_stats.py calls: the kernel on arrays in host memory.
#include "cuda/activation_stats.h"

using namespace gradops;
using namespace gradops::cuda;

extern "C" {

int64_t strip_elements() { return kStrip; }
int64_t strip_bytes() { return sizeof(Strip); }
int64_t totals_bytes() { return sizeof(ActivationTotals); }

void run(void* x, const int64_t* layout, int64_t dtype, int64_t numel, double near_zero, void* strips, void* totals,
         float* measures, int64_t* counts, int64_t blocks) {
  const View view{x, layout, static_cast<Dtype>(dtype)};
  activation_stats({view, numel, static_cast<float>(near_zero), static_cast<Strip*>(strips),
                    static_cast<ActivationTotals*>(totals), measures, counts},
                   static_cast<int32_t>(blocks), nullptr);
}

}  // extern "C"
