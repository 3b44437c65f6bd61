// The functions of csrc/math, one promise each.
#include "check.h"
#include "math/agc.h"
#include "math/decide.h"
#include "math/loss_scale.h"
#include "math/relative_step.h"
#include "math/rules/adam.h"
#include "math/rules/lars.h"
#include "math/rules/lion.h"

using namespace gradops;

namespace {

bool near(double value, double expected, double relative) {
  return std::fabs(value - expected) <= relative * std::fabs(expected);
}

void power_sums_of_different_units_merge_to_the_true_norm() {
  PowerSum power;
  power.merge(2.0, 1e20, 2.0);
  power.merge(3.0, 1e-20, 2.0);
  power.merge(2.0, 1e20, 2.0);
  CHECK(near(power.norm(2.0), 2e20, 1e-12));
  PowerSum other_order;
  other_order.merge(3.0, 1e-20, 2.0);
  other_order.merge(4.0, 1e20, 2.0);
  CHECK(near(other_order.norm(2.0), 2e20, 1e-12));
  CHECK(PowerSum().norm(3.0) == 0.0);
}

void one_maximum_tells_numbers_from_inf_from_nan() {
  float sum = 0.0f;
  int32_t bits = 0;
  add_element<NormType::kL2>(-3.0f, Unscaling{}, sum, bits);
  CHECK(bits_float(bits) == 3.0f && sum == 9.0f);
  add_element<NormType::kL2>(-INFINITY, Unscaling{}, sum, bits);
  CHECK(bits == kInfBits);
  add_element<NormType::kL2>(-NAN, Unscaling{}, sum, bits);
  CHECK(std::isnan(bits_float(bits)));
}

void clamping_comes_after_unscaling_and_leaves_abs_max_alone() {
  float sum = 0.0f;
  int32_t bits = 0;
  add_element<NormType::kL1>(-80.0f, Unscaling{0.1f, 2.0f}, sum, bits);
  CHECK(sum == 2.0f);
  CHECK(near(bits_float(bits), 8.0, 1e-6));
  CHECK(clamp_grad(-80.0f, 2.0f) == -2.0f && clamp_grad(1.5f, 2.0f) == 1.5f && std::isnan(clamp_grad(NAN, 2.0f)));
}

void clip_coef_is_torchs_formula_and_never_above_one() {
  CHECK(near(clip_coef(10.0, 1.0), 1.0 / (10.0 + 1e-6), 1e-7));
  CHECK(clip_coef(0.5, 1.0) == 1.0f);
  CHECK(near(clip_coef(1e39, 1.0), 1e-39, 1e-6));  // a norm beyond float32
  CHECK(clip_coef(0.0, 0.0) == 0.0f);
}

void an_inf_skips_and_does_not_clip() {
  GradStats stats;
  stats.nonfinite = 1;
  stats.abs_max_bits = kInfBits;
  const StepDecision decision = decide(stats, stats.norm(2.0, INFINITY), 1.0, Unscaling{}, false);
  CHECK(decision.skip && decision.clip_coef == 1.0f);
  CHECK(std::isinf(stats.norm(2.0, 5.0)));
  CHECK(decide(GradStats(), 3.0, 1.0, Unscaling{}, true).skip);
}

void loss_scale_backs_off_grows_and_stays_inside_its_bounds() {
  LossScalePolicy policy;
  policy.growth_interval = 2;
  policy.min_scale = 4.0;
  policy.max_scale = 16.0;
  LossScaleState state{8.0f, 1};
  state = next_loss_scale(state, policy, true);
  CHECK(state.scale == 4.0f && state.growth_tracker == 0);
  CHECK(next_loss_scale(state, policy, true).scale == 4.0f);
  state = next_loss_scale(state, policy, false);
  CHECK(state.scale == 4.0f && state.growth_tracker == 1);
  state = next_loss_scale(state, policy, false);
  CHECK(state.scale == 8.0f && state.growth_tracker == 0);
  CHECK(next_loss_scale({16.0f, 1}, policy, false).scale == 16.0f);
}

void the_cap_binds_only_where_it_is_below_the_learning_rate() {
  const RelativeStepPolicy policy{0.1, 0.01, 50};
  CHECK(capped_lr(1e-3, 1.0, 50, policy) == 1e-3);
  CHECK(near(capped_lr(1.0, 2.0, 50, policy), 0.2, 1e-12));
  CHECK(near(capped_lr(1.0, 2.0, 1, policy), 0.2 / 50, 1e-12));
  CHECK(near(capped_lr(1.0, 0.0, 100, policy), 0.1 * 0.01, 1e-12));
  CHECK(capped_lr(1.0, 1.0, 1, RelativeStepPolicy()) == 1.0);
  CHECK(near(capped_lr(1.0, 2.0, 50, policy, 4.0), 0.05, 1e-12));
  CHECK(capped_lr(1.0, 2.0, 50, policy, 0.0) == 1.0);
}

HyperParams adam(double weight_decay = 0.0) {
  HyperParams hyper{.lr = 1e-3, .weight_decay = weight_decay, .own = {0.9, 0.999, 1e-8, 0.0}};
  hyper.variant = Adam::variant(own_numbers<Adam::Hyper>(hyper.own));
  return hyper;
}

Adam::Coefs adam_coefs(const RowRule& rule) { return own_numbers<Adam::Coefs>(rule.own); }

template <WeightDecay kDecay>
float first_adam_step(float param, float grad, float (&moments)[Adam::kMoments], const HyperParams& hyper) {
  const RowRule rule = row_rule<Adam>(hyper, {hyper.lr, 1.0});
  return update_element<Adam, Adam::kPlain, kDecay>(param, grad, moments, StepDecision(), rule, adam_coefs(rule));
}

void constants_are_rounded_once_from_float64() {
  const Adam::Coefs coefs = adam_coefs(row_rule<Adam>(adam(), {1e-3, 1.0}));
  CHECK(coefs.one_minus_beta2 == static_cast<float>(1.0 - 0.999));
  CHECK(coefs.one_minus_beta2 != 1.0f - 0.999f);
  CHECK(near(coefs.step_size, 1e-3 / (1.0 - 0.9), 1e-7));
}

void first_step_moves_by_the_learning_rate_against_the_gradient() {
  float moments[Adam::kMoments] = {};
  CHECK(near(first_adam_step<WeightDecay::kL2>(1.0f, 5.0f, moments, adam()), 1.0 - 1e-3, 1e-6));
  CHECK(near(moments[Adam::kExpAvg], 0.5, 1e-6) && near(moments[Adam::kExpAvgSq], 0.025, 1e-6));
  HyperParams maximize = adam();
  maximize.maximize = true;
  float fresh[Adam::kMoments] = {};
  CHECK(near(first_adam_step<WeightDecay::kL2>(1.0f, 5.0f, fresh, maximize), 1.0 + 1e-3, 1e-6));
}

void decoupled_decay_leaves_the_moments_alone_and_l2_does_not() {
  HyperParams hyper = adam(0.1);
  float moments[Adam::kMoments] = {};
  first_adam_step<WeightDecay::kL2>(2.0f, 0.0f, moments, hyper);
  CHECK(near(moments[Adam::kExpAvg], 0.1 * 0.2, 1e-6));
  hyper.decay_kind = WeightDecay::kDecoupled;
  float fresh[Adam::kMoments] = {};
  const float decayed = first_adam_step<WeightDecay::kDecoupled>(2.0f, 0.0f, fresh, hyper);
  CHECK(fresh[Adam::kExpAvg] == 0.0f && near(decayed, 2.0 * (1.0 - 1e-4), 1e-7));
}

void first_moment_starts_where_more_weight_is() {
  CHECK(lerp(30.0f, 0.0144f, lerp_coef(0.0)) == 0.0144f);
  CHECK(lerp(0.0144f, 30.0f, lerp_coef(1.0 - 1e-12)) == 0.0144f);
  CHECK(lerp_coef(0.5) == -0.5f && lerp_coef(0.75) == 0.25f);
  CHECK(near(lerp(4.0f, -2.0f, lerp_coef(0.25)), -0.5, 1e-7));
}

Lars::Hyper lars() { return {.sgd = {}, .trust_coeff = 0.5, .eps = 0.0, .trust_clip = 0.0, .always_adapt = 0.0}; }

void a_trust_ratio_is_of_the_weights_and_of_all_that_the_rate_multiplies() {
  CHECK(near(Lars::grad_factor(lars(), 0.25, 1.0, {4.0, 3.0}), 0.5 * 4.0 / (3.0 + 0.25 * 4.0), 1e-12));
  HyperParams hyper{.weight_decay = 0.25, .l1 = 2.0, .own = {0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0}};
  CHECK(near(grad_factor<Lars>(hyper, 1.0, 4.0, 3.0, 9), 0.5 * 4.0 / (3.0 + 2.0 * 3.0 + 0.25 * 4.0), 1e-12));
}

void a_trust_ratio_is_one_where_nothing_is_adapted() {
  CHECK(Lars::grad_factor(lars(), 0.0, 1.0, {4.0, 3.0}) == 1.0);
  CHECK(Lars::grad_factor(lars(), 0.25, 1.0, {0.0, 3.0}) == 1.0);
  CHECK(Lars::grad_factor(lars(), 0.25, 1.0, {4.0, 0.0}) == 1.0);
  Lars::Hyper always = lars();
  always.always_adapt = 1.0;
  CHECK(near(Lars::grad_factor(always, 0.0, 1.0, {4.0, 3.0}), 0.5 * 4.0 / 3.0, 1e-12));
}

void clipped_trust_bounds_the_rate() {
  Lars::Hyper clips = lars();
  clips.trust_clip = 1.0;
  CHECK(near(Lars::grad_factor(clips, 0.25, 4.0, {4.0, 3.0}), 0.5 / 4.0, 1e-12));
  CHECK(Lars::grad_factor(clips, 0.25, 0.25, {4.0, 3.0}) == 1.0);
  CHECK(Lars::grad_factor(clips, 0.25, 0.0, {4.0, 3.0}) == 1.0);
}

void lion_moves_by_the_rate_or_not_at_all() {
  const Lion::Coefs coefs = Lion::coefs({0.9, 0.99}, {0.125});
  float moments[Lion::kMoments] = {0.0f};
  CHECK(Lion::update<Lion::kPlain>(1.0f, 1e-30f, moments, coefs) == 0.875f);
  CHECK(near(moments[Lion::kExpAvg], 0.01 * 1e-30, 1e-6));
  moments[Lion::kExpAvg] = 1.0f;
  CHECK(Lion::update<Lion::kPlain>(1.0f, -30.0f, moments, coefs) == 1.125f);
  moments[Lion::kExpAvg] = 0.0f;
  CHECK(Lion::update<Lion::kPlain>(1.0f, 0.0f, moments, coefs) == 1.0f);
}

void a_units_gradient_is_clipped_to_its_share_of_the_weights() {
  CHECK(near(agc_coef(5.0, 1.0, 0.1), 0.5, 1e-7));
  CHECK(agc_coef(50.0, 1.0, 0.1) == 1.0f);
  CHECK(near(agc_coef(0.0, 1.0, 0.1), 1e-4, 1e-7));
  CHECK(agc_coef(5.0, 0.0, 0.1) == 1.0f);
}

}  // namespace

int main() {
  power_sums_of_different_units_merge_to_the_true_norm();
  one_maximum_tells_numbers_from_inf_from_nan();
  clamping_comes_after_unscaling_and_leaves_abs_max_alone();
  clip_coef_is_torchs_formula_and_never_above_one();
  an_inf_skips_and_does_not_clip();
  loss_scale_backs_off_grows_and_stays_inside_its_bounds();
  the_cap_binds_only_where_it_is_below_the_learning_rate();
  constants_are_rounded_once_from_float64();
  first_step_moves_by_the_learning_rate_against_the_gradient();
  decoupled_decay_leaves_the_moments_alone_and_l2_does_not();
  first_moment_starts_where_more_weight_is();
  a_trust_ratio_is_of_the_weights_and_of_all_that_the_rate_multiplies();
  a_trust_ratio_is_one_where_nothing_is_adapted();
  clipped_trust_bounds_the_rate();
  lion_moves_by_the_rate_or_not_at_all();
  a_units_gradient_is_clipped_to_its_share_of_the_weights();
  return done("test_math");
}
