// What every update rule shares: its numbers among those of a group and of a row, the gradient's way from memory to the
// rule, and what storing the result takes off it.
//
// A rule is a type in math/rules:
//     kMoments, kVariants            tensors of state; kinds of update, of which a group has one
//     Hyper, Coefs                   structs of float64 and of float32: what a user gives, and what an element takes
//     variant(Hyper)                 which kind of update a group has
//     uses(variant, moment)          whether that kind has the moment
//     kScaleFree                     whether no update's size depends on that of the gradients
//     coefs(Hyper, RowStep)          derived in float64 and then rounded: 1 - 0.999f is off by 1.3e-5
//     update<kVariant>(param, grad, moments, Coefs)   one element; the new parameter
// and, where a parameter's state has a scalar, a number beside moments and step that each update moves,
//     next_scalar(Hyper, step, scalar)   what it is after update number `step`
// and, where kScaleFree is false for some updates only,
//     adapts(Hyper, step)            whether the size of update number `step` does not depend on that of the gradients
// and, where it scales gradients by norms,
//     grad_factor(Hyper, weight_decay, lr, RowNorms)   what the regularised gradient is multiplied by, of which coefs
//                                    makes what the elements take
#pragma once

#include <concepts>

#include "math/decide.h"
#include "tensors.h"

namespace gradops {

constexpr int kMaxHyper = 7, kMaxCoefs = 6;

enum class WeightDecay : int32_t { kL2, kDecoupled };

// A param group's hyper-parameters as a user gives them; float64, as torch keeps them. `own` holds the rule's Hyper.
struct HyperParams {
  double lr = 1e-3;
  double weight_decay = 0.0;
  double l1 = 0.0;
  double own[kMaxHyper] = {};
  WeightDecay decay_kind = WeightDecay::kL2;
  int32_t variant = 0;
  bool maximize = false;

  bool operator==(const HyperParams&) const = default;
};

// What a row brings to one step of it.
struct RowStep {
  double lr = 0.0;      // after the relative step cap
  double step = 1.0;    // its updates with this one, from 1
  double scalar = 0.0;  // of its state, before the update; 0 for a rule that has none
  double grad_factor = 1.0;

  bool operator==(const RowStep&) const = default;
};

// A row's L2 norms before its update: of what is updated, and of the clipped gradient with the most that L1 adds to it.
struct RowNorms {
  double param;
  double grad;
};

// A group's numbers, ready for one step of one row. `own` holds the rule's Coefs.
struct alignas(16) RowRule {
  float grad_sign;
  float l1;
  float decay;  // weight_decay, times lr where it is decoupled
  WeightDecay decay_kind;
  int32_t variant;
  int32_t capped;  // whether the relative step cap has made lr smaller; whoever asks it says so
  float own[kMaxCoefs];
};

template <class R>
concept UpdateRule =
    R::kMoments <= kMaxMoments && R::kVariants >= 1 && sizeof(typename R::Hyper) <= sizeof(HyperParams::own) &&
    sizeof(typename R::Coefs) <= sizeof(RowRule::own) && requires(typename R::Hyper hyper, RowStep row) {
      { R::kScaleFree } -> std::convertible_to<bool>;
      { R::variant(hyper) } -> std::convertible_to<int>;
      { R::uses(0, 0) } -> std::same_as<bool>;
      { R::coefs(hyper, row) } -> std::same_as<typename R::Coefs>;
    };

template <class R>
concept RuleWithScalar = UpdateRule<R> && requires(typename R::Hyper hyper) {
  { R::next_scalar(hyper, 1.0, 1.0f) } -> std::same_as<float>;
};

// Whether a rule scales gradients by norms.
template <class R>
constexpr bool kNeedsNorms = requires(typename R::Hyper hyper, RowNorms norms) {
  { R::grad_factor(hyper, 0.0, 0.0, norms) } -> std::same_as<double>;
};

// A rule's Hyper or Coefs, of whose type a group and a row know nothing.
template <class Numbers, class Number, int kRoom>
GRADOPS_HD Numbers own_numbers(const Number (&own)[kRoom]) {
  static_assert(alignof(Numbers) == alignof(Number));
  Numbers numbers;
  memcpy(&numbers, own, sizeof(Numbers));
  return numbers;
}

template <UpdateRule Rule>
GRADOPS_HD RowRule row_rule(const HyperParams& hyper, const RowStep& row) {
  const typename Rule::Coefs coefs = Rule::coefs(own_numbers<typename Rule::Hyper>(hyper.own), row);
  const bool decoupled = hyper.decay_kind == WeightDecay::kDecoupled;
  RowRule rule;
  rule.grad_sign = hyper.maximize ? -1.0f : 1.0f;
  rule.l1 = static_cast<float>(hyper.l1);
  rule.decay = static_cast<float>(decoupled ? row.lr * hyper.weight_decay : hyper.weight_decay);
  rule.decay_kind = hyper.decay_kind;
  rule.variant = hyper.variant;
  rule.capped = 0;
  memcpy(rule.own, &coefs, sizeof(coefs));
  return rule;
}

// Of a rule with a scalar: its value after update number `step`.
template <RuleWithScalar Rule>
GRADOPS_HD float next_scalar(const HyperParams& hyper, double step, float scalar) {
  return Rule::next_scalar(own_numbers<typename Rule::Hyper>(hyper.own), step, scalar);
}

// A number that is known when code is compiled, as an argument.
template <int kValue>
struct Known {
  static constexpr int value = kValue;
};

// Calls run(Known<variant>()).
template <UpdateRule Rule, int kVariant = 0, class Run>
GRADOPS_HD auto with_variant(int32_t variant, const Run& run) {
  if constexpr (kVariant + 1 < Rule::kVariants) {
    return variant == kVariant ? run(Known<kVariant>()) : with_variant<Rule, kVariant + 1>(variant, run);
  } else {
    return run(Known<kVariant>());
  }
}

// Whether the size of an update does not depend on that of the gradients.
template <UpdateRule Rule>
GRADOPS_HD bool adapts(const HyperParams& hyper, double step) {
  if constexpr (requires(typename Rule::Hyper own) { Rule::adapts(own, step); }) {
    return Rule::adapts(own_numbers<typename Rule::Hyper>(hyper.own), step);
  } else {
    return Rule::kScaleFree;
  }
}

// What a rule that needs norms multiplies a row's gradient by; `lr` is not capped yet, `grad_norm` without L1.
template <UpdateRule Rule>
GRADOPS_HD double grad_factor(const HyperParams& hyper, double lr, double param_norm, double grad_norm, int64_t numel) {
  const RowNorms norms{param_norm, grad_norm + hyper.l1 * sqrt(static_cast<double>(numel))};
  return Rule::grad_factor(own_numbers<typename Rule::Hyper>(hyper.own), hyper.weight_decay, lr, norms);
}

// The RMS of what an update takes off a parameter for each unit of lr, at most, where the rule leaves the gradients
// their size.
GRADOPS_HD double rms_per_lr(const HyperParams& hyper, double param_rms, double grad_rms) {
  const bool l2 = hyper.decay_kind == WeightDecay::kL2;
  return grad_rms + (l2 ? hyper.weight_decay * param_rms : 0.0) + hyper.l1;
}

// Calls run(Known<moment>()) for each moment that the variant uses.
template <UpdateRule Rule, int kVariant, int kMoment = 0, class Run>
GRADOPS_HD void for_each_moment(const Run& run) {
  if constexpr (kMoment < Rule::kMoments) {
    if constexpr (Rule::uses(kVariant, kMoment)) run(Known<kMoment>());
    for_each_moment<Rule, kVariant, kMoment + 1>(run);
  }
}

// `size` times the sign of x, which is 0 where x is 0 or NaN: as two masks, since one choice inside another takes twice
// as many instructions.
GRADOPS_HD float times_sign(float size, float x) { return (x > 0.0f ? size : 0.0f) - (x < 0.0f ? size : 0.0f); }

// Of one element: unscales and clips the gradient, turns it for `maximize`, and adds L1 and weight decay to it, or the
// decoupled decay to the parameter. Without kFull there is neither a clip_value nor L1.
template <WeightDecay kDecay, bool kFull = true>
GRADOPS_HD float regularise(float& param, float grad, const StepDecision& decision, const RowRule& rule) {
  grad *= decision.inv_scale;
  if constexpr (kFull) grad = clamp_grad(grad, decision.clip_value);
  // The sign goes into the factor, which is the same for all elements of a loop.
  grad *= decision.clip_coef * rule.grad_sign;
  // The subgradient of l1 * |param|: 0 at 0, so that a weight that is there may stay.
  if constexpr (kFull) grad += times_sign(rule.l1, param);
  if constexpr (kDecay == WeightDecay::kL2) grad += rule.decay * param;
  if constexpr (kDecay == WeightDecay::kDecoupled) param -= rule.decay * param;
  return grad;
}

// One element of one step; `grad` is as stored, `coefs` are the row's own. The new parameter; all arithmetic is
// float32.
template <UpdateRule Rule, int kVariant, WeightDecay kDecay, bool kFull = true>
GRADOPS_HD float update_element(float param, float grad, float (&moments)[Rule::kMoments], const StepDecision& decision,
                                const RowRule& rule, const typename Rule::Coefs& coefs) {
  grad = regularise<kDecay, kFull>(param, grad, decision, rule);
  return Rule::template update<kVariant>(param, grad, moments, coefs);
}

// What storing `x` as `rounded` takes off it, which is exact; 0 where `rounded` is inf or NaN. Added to the parameter
// before the next update, it makes of both a sum compensated as by Kahan (1965).
GRADOPS_HD float left_by_rounding(float x, float rounded) {
  const float left = x - rounded;
  return left - left == 0.0f ? left : 0.0f;
}

}  // namespace gradops
