// Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018) and AdamW (Loshchilov and Hutter 2019) as torch.optim
// defines them, for one element.
#pragma once

#include "math/update.h"

namespace gradops {

// A parameter's hyper-parameters as a user gives them; float64, as torch keeps them.
struct AdamHyper {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  double l1 = 0.0;
  WeightDecay decay_kind = WeightDecay::kL2;
  bool amsgrad = false;
  bool maximize = false;

  bool operator==(const AdamHyper&) const = default;
};

// The same, ready for one step of one parameter. Derived in float64 and then rounded: 1 - 0.999f is off by 1.3e-5.
struct AdamRule {
  float grad_sign;
  float exp_avg_coef;  // see lerp
  float beta2;
  float one_minus_beta2;
  float eps;
  float l1;
  float decay;                      // weight_decay, times lr where it is decoupled
  float step_size;                  // lr / (1 - beta1^step)
  float inv_bias_correction2_sqrt;  // 1 / sqrt(1 - beta2^step)
};

// What `lerp` takes for beta1.
GRADOPS_HD float exp_avg_coef(double beta1) { return static_cast<float>((beta1 > 0.5 ? 1.0 : 0.0) - beta1); }

// `lr` is the one this parameter takes, after the relative step cap; `step` counts this update, from 1.
GRADOPS_HD AdamRule adam_rule(const AdamHyper& hyper, double lr, double step) {
  const bool decoupled = hyper.decay_kind == WeightDecay::kDecoupled;
  AdamRule rule;
  rule.grad_sign = hyper.maximize ? -1.0f : 1.0f;
  rule.exp_avg_coef = exp_avg_coef(hyper.beta1);
  rule.beta2 = static_cast<float>(hyper.beta2);
  rule.one_minus_beta2 = static_cast<float>(1.0 - hyper.beta2);
  rule.eps = static_cast<float>(hyper.eps);
  rule.l1 = static_cast<float>(hyper.l1);
  rule.decay = static_cast<float>(decoupled ? lr * hyper.weight_decay : hyper.weight_decay);
  rule.step_size = static_cast<float>(lr / (1.0 - pow(hyper.beta1, step)));
  rule.inv_bias_correction2_sqrt = static_cast<float>(1.0 / sqrt(1.0 - pow(hyper.beta2, step)));
  return rule;
}

struct AdamElement {
  float param;
  float exp_avg;
  float exp_avg_sq;
  float max_exp_avg_sq;  // unused without amsgrad
};

// beta1 * exp_avg + (1 - beta1) * grad, from the end that weighs more, as torch.lerp: from the other one, the rounding
// of a large difference would stay in the sum. `coef` is 1 - beta1 from exp_avg, and -beta1 from grad.
GRADOPS_HD float lerp(float exp_avg, float grad, float coef) {
  return (coef > 0.0f ? exp_avg : grad) + (grad - exp_avg) * coef;
}

// One element of one step; `grad` is as stored. All arithmetic is float32.
template <WeightDecay kDecay, bool kAmsgrad, bool kL1 = true>
GRADOPS_HD AdamElement adam_update(AdamElement e, float grad, const StepDecision& decision, const AdamRule& rule) {
  grad = regularise<kDecay, kL1>(e.param, grad, decision, rule);
  e.exp_avg = lerp(e.exp_avg, grad, rule.exp_avg_coef);
  e.exp_avg_sq = e.exp_avg_sq * rule.beta2 + rule.one_minus_beta2 * grad * grad;
  float second_moment = e.exp_avg_sq;
  if constexpr (kAmsgrad) {
    e.max_exp_avg_sq = e.max_exp_avg_sq > second_moment ? e.max_exp_avg_sq : second_moment;
    second_moment = e.max_exp_avg_sq;
  }
  const float denom = sqrtf(second_moment) * rule.inv_bias_correction2_sqrt + rule.eps;
  e.param -= rule.step_size * (e.exp_avg / denom);
  return e;
}

}  // namespace gradops
