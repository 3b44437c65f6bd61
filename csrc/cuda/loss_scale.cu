// The loss scale's move, alone.
#include "cuda/launch.cuh"
#include "math/loss_scale.h"

namespace gradops::cuda {

__global__ void update_loss_scale_kernel(float* scale, int64_t* growth_tracker, const float* found_inf,
                                         const LossScalePolicy policy) {
  if (threadIdx.x != 0) return;
  const LossScaleState next = next_loss_scale({load(scale), load(growth_tracker)}, policy, load(found_inf) != 0.0f);
  store(scale, next.scale);
  store(growth_tracker, next.growth_tracker);
}

void update_loss_scale(float* scale, int64_t* growth_tracker, const float* found_inf, const LossScalePolicy& policy,
                       Stream stream) {
  launch("update_loss_scale", update_loss_scale_kernel, 1, 0, false, stream, scale, growth_tracker, found_inf, policy);
}

}  // namespace gradops::cuda
