// The relative step cap: a tensor's learning rate is at most `cap` times the size of its weights.
//
// After Adafactor's relative step size (Shazeer and Stern 2018, section 8), but as a cap: where it does not bind the
// step is exactly the rule's. For rules that leave the gradients their size it is the bound of LARC (You et al. 2017).
#pragma once

#include "math/common.h"

namespace gradops {

struct RelativeStepPolicy {
  double cap = INFINITY;
  double floor = 0.01;       // smallest RMS that counts: a tensor of zeros must be able to leave zero
  int64_t warmup_steps = 0;  // the cap grows linearly over a parameter's first updates
};

// `rms` of the stored parameter before the update; `step` is the parameter's own number of this update, from 1;
// `rms_per_lr` is how far an update goes for each unit of lr: about 1 for updates that have a size of their own.
GRADOPS_HD double capped_lr(double lr, double rms, double step, const RelativeStepPolicy& policy,
                            double rms_per_lr = 1.0) {
  const double warm = step < policy.warmup_steps ? step / policy.warmup_steps : 1.0;
  const double limit = policy.cap * warm * (rms > policy.floor ? rms : policy.floor) / rms_per_lr;
  return limit < lr ? limit : lr;
}

}  // namespace gradops
