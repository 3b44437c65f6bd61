// A rule of csrc/math/rules, which HEADER names and RULE, and the average of csrc/math/ema.h, for Python's ctypes.
#include "math/ema.h"
#include HEADER

namespace gradops {
namespace {

using Rule = RULE;

HyperParams group_of(const double* own) {
  HyperParams group;
  memcpy(group.own, own, sizeof(typename Rule::Hyper));
  group.variant = Rule::variant(own_numbers<typename Rule::Hyper>(group.own));
  return group;
}

// What not every rule has.
template <class R>
float scalar_after(const HyperParams& group, double step, float scalar) {
  if constexpr (RuleWithScalar<R>) return next_scalar<R>(group, step, scalar);
  return scalar;
}

template <class R>
double factor_of(const HyperParams& group, double weight_decay, double lr, const RowNorms& norms) {
  if constexpr (kNeedsNorms<R>) {
    return R::grad_factor(own_numbers<typename R::Hyper>(group.own), weight_decay, lr, norms);
  }
  return 1.0;
}

}  // namespace

// A parameter's update; `moments` are those that the variant uses.
extern "C" void update(const double* own, double lr, double step, double scalar, int64_t numel, float* param,
                       const float* grad, float* const* moments) {
  const HyperParams group = group_of(own);
  RowStep row;
  row.lr = lr;
  row.step = step;
  row.scalar = scalar;
  const auto coefs = own_numbers<typename Rule::Coefs>(row_rule<Rule>(group, row).own);
  with_variant<Rule>(group.variant, [&](auto variant) {
    for (int64_t i = 0; i < numel; ++i) {
      float values[Rule::kMoments] = {};
      int at = 0;
      for_each_moment<Rule, variant.value>([&](auto moment) { values[moment.value] = moments[at++][i]; });
      param[i] = Rule::template update<variant.value>(param[i], grad[i], values, coefs);
      at = 0;
      for_each_moment<Rule, variant.value>([&](auto moment) { moments[at++][i] = values[moment.value]; });
    }
  });
}

extern "C" float next_scalar(const double* own, double step, float scalar) {
  return scalar_after<Rule>(group_of(own), step, scalar);
}

extern "C" double grad_factor(const double* own, double weight_decay, double lr, double param_norm, double grad_norm) {
  return factor_of<Rule>(group_of(own), weight_decay, lr, RowNorms{param_norm, grad_norm});
}

extern "C" float ema_weight(const double* policy, double step) {
  EmaPolicy numbers;
  memcpy(&numbers, policy, sizeof(numbers));
  return ema_weight(numbers, step);
}

extern "C" void average(float* averages, const float* values, int64_t numel, float weight) {
  for (int64_t i = 0; i < numel; ++i) averages[i] = averaged(averages[i], values[i], weight);
}

}  // namespace gradops
