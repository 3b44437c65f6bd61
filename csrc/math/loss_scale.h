// Dynamic loss scaling: torch.amp.GradScaler's policy, kept inside [min_scale, max_scale].
#pragma once

#include "math/common.h"

namespace gradops {

struct LossScalePolicy {
  double growth_factor = 2.0;
  double backoff_factor = 0.5;
  int64_t growth_interval = 2000;
  double min_scale = 0x1p-14;
  double max_scale = 0x1p24;
};

struct LossScaleState {
  float scale = 0x1p16f;
  int64_t growth_tracker = 0;  // steps without inf or NaN since the scale last moved
};

GRADOPS_HD LossScaleState next_loss_scale(LossScaleState state, const LossScalePolicy& policy, bool found_inf) {
  if (found_inf) {
    const double smaller = state.scale * policy.backoff_factor;
    return {static_cast<float>(smaller < policy.min_scale ? policy.min_scale : smaller), 0};
  }
  if (state.growth_tracker + 1 < policy.growth_interval) return {state.scale, state.growth_tracker + 1};
  const double larger = state.scale * policy.growth_factor;
  return {static_cast<float>(larger > policy.max_scale ? policy.max_scale : larger), 0};
}

}  // namespace gradops
