// From what the gradients are to what this step does with them.
#pragma once

#include "math/grad_stats.h"

namespace gradops {

// All that an update kernel may know: it never sees norms, limits or the loss scale's policy.
struct StepDecision {
  float inv_scale = 1.0f;
  float clip_value = INFINITY;
  float clip_coef = 1.0f;
  bool skip = false;
};

// The quotient in float64: a float16 loss scale of 3 and its float32 reciprocal must not be rounded twice.
GRADOPS_HD float inv_loss_scale(float loss_scale) { return static_cast<float>(1.0 / static_cast<double>(loss_scale)); }

// min(1, max_norm / (grad_norm + 1e-6)), the formula of torch.nn.utils.clip_grad_norm_. The norm comes in float64, so
// that one beyond float32's range still gives the right coefficient.
GRADOPS_HD float clip_coef(double grad_norm, double max_norm) {
  const double coef = max_norm / (grad_norm + 1e-6);
  return coef < 1.0 ? static_cast<float>(coef) : 1.0f;
}

// `max_norm` is inf where nothing is clipped; `found_inf` may be set by somebody who looked at the gradients before.
GRADOPS_HD StepDecision decide(const GradStats& all, double grad_norm, double max_norm, const Unscaling& unscaling,
                               bool found_inf) {
  StepDecision decision;
  decision.inv_scale = unscaling.inv_scale;
  decision.clip_value = unscaling.clip_value;
  decision.skip = found_inf || all.nonfinite != 0;
  if (!decision.skip && !std::isinf(max_norm)) decision.clip_coef = clip_coef(grad_norm, max_norm);
  return decision;
}

}  // namespace gradops
