// What every update rule shares: the gradient's way from memory to the rule, and what storing the result takes off it.
#pragma once

#include "math/decide.h"

namespace gradops {

enum class WeightDecay { kL2, kDecoupled };

// The subgradient of l1 * |param|; 0 at 0, so that a weight that is there may stay.
GRADOPS_HD float l1_grad(float param, float l1) { return param > 0.0f ? l1 : param < 0.0f ? -l1 : 0.0f; }

// Of one element: unscales and clips the gradient, turns it for `maximize`, and adds L1 and weight decay to it, or the
// decoupled decay to the parameter. Without kL1 `rule.l1` is 0.
template <WeightDecay kDecay, bool kL1 = true, class Rule>
GRADOPS_HD float regularise(float& param, float grad, const StepDecision& decision, const Rule& rule) {
  // The sign goes into the factor, which is the same for all elements of a loop.
  grad = clamp_grad(grad * decision.inv_scale, decision.clip_value) * (decision.clip_coef * rule.grad_sign);
  if constexpr (kL1) grad += l1_grad(param, rule.l1);
  if constexpr (kDecay == WeightDecay::kL2) grad += rule.decay * param;
  if constexpr (kDecay == WeightDecay::kDecoupled) param -= rule.decay * param;
  return grad;
}

// What storing `x` as `rounded` takes off it, which is exact; 0 where `rounded` is inf or NaN. Added to the parameter
// before the next update, it makes of both a sum compensated as by Kahan (1965).
GRADOPS_HD float left_by_rounding(float x, float rounded) {
  const float left = x - rounded;
  return left - left == 0.0f ? left : 0.0f;
}

}  // namespace gradops
