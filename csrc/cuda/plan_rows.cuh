// How each row will be updated, in device code: its learning rate, and what the rule makes of it.
#pragma once

#include "cuda/grad_stats.cuh"
#include "math/update_stats.h"

namespace gradops::cuda {

GRADOPS_DEVICE double current_lr(const GroupRule& group) {
  if (group.lr == nullptr) return group.hyper.lr;
  if (group.lr_is_double) return load(static_cast<const double*>(group.lr));
  return load(static_cast<const float*>(group.lr));
}

// Whether rows may be planned by their gradients: where those decide the bound on a step, or what the rule makes of it.
template <class Rule>
constexpr bool kMayPlanByGrads = kNeedsNorms<Rule> || !Rule::kScaleFree;

template <class Rule>
GRADOPS_HD bool plans_by_grads(const StepArgs& step) {
  return kNeedsNorms<Rule> || (kMayPlanByGrads<Rule> && step.caps());
}

// Writes the rule of a row, of whose step `plan(hyper, numel, step)` sets what differs from the group's.
template <class Rule, class Plan>
GRADOPS_DEVICE void plan_row(const Call& call, int32_t index, double lr_factor, const Plan& plan) {
  const TensorRow* row = call.step.table.rows + index;
  const GroupRule group = call.group(load(&row->group));
  const double group_lr = current_lr(group) * lr_factor;
  RowStep step{group_lr, static_cast<double>(load(load(&row->step))) + 1.0};
  if constexpr (RuleWithScalar<Rule>) step.scalar = load(load(&row->scalar));
  plan(group.hyper, load(&row->numel), step);
  RowRule rule = row_rule<Rule>(group.hyper, step);
  rule.capped = step.lr < group_lr;
  store_struct(call.step.work.row_rules + index, rule);
}

// All rows, unless plan_rows_by_grads follows. It depends on nothing that the gradients decide, so it is done while
// they are on their way.
template <class Rule>
GRADOPS_DEVICE void plan_rows(const Call& call, GradStats (&scratch)[kWarps]) {
  if (plans_by_grads<Rule>(call.step)) return;
  const bool caps = call.step.caps();
  const RelativeStepPolicy relative_step = call.step.policies.relative_step;
  const double lr_factor = guard_state(call.step).lr_factor;
  const GradStats* param_sums = caps ? call.step.work.param_sums : nullptr;
  for_each_row(call.step.table, param_sums, 2.0, scratch, [&](int32_t index, const GradStats& squares) {
    if (call.grad(index) == nullptr) return;
    plan_row<Rule>(call, index, lr_factor, [&](const HyperParams&, int64_t numel, RowStep& step) {
      if (caps) step.lr = capped_lr(step.lr, rms_of(squares.power.norm(2.0), numel), step.step, relative_step);
    });
  });
}

// What the norms of a row, its gradient's before clipping, make of its step.
template <class Rule>
GRADOPS_DEVICE void plan_by_norms(const StepArgs& args, const HyperParams& hyper, int64_t numel, double norm,
                                  double grad_norm, float clip_coef, RowStep& step) {
  if constexpr (kNeedsNorms<Rule>) {
    step.grad_factor = grad_factor<Rule>(hyper, step.lr, norm, clip_coef * grad_norm, numel);
    if (!args.caps()) return;
  }
  const double rms = rms_of(norm, numel);
  double per_lr = 1.0;
  if (!adapts<Rule>(hyper, step.step)) {
    per_lr = rms_per_lr(hyper, rms, clip_coef * rms_of(grad_norm, numel));
    if constexpr (kNeedsNorms<Rule>) per_lr *= step.grad_factor;
  }
  step.lr = capped_lr(step.lr, rms, step.step, args.policies.relative_step, per_lr);
}

// The same after the decision, for rules whose step is scaled or bounded by the size of the clipped gradient.
template <class Rule>
GRADOPS_DEVICE void plan_rows_by_grads(const Call& call, const StepDecision& decision, GradStats (&scratch)[kWarps]) {
  const Workspace& work = call.step.work;
  const double lr_factor = load(&work.inputs->guard.lr_factor);
  for_each_row(call.step.table, work.param_sums, 2.0, scratch, [&](int32_t row, const GradStats& squares) {
    if (call.grad(row) != nullptr) store(work.row_norms + row, squares.power.norm(2.0));
  });
  // The thread that is given a row is the same as before.
  for_each_row(call.step.table, work.grad_sums, 2.0, scratch, [&](int32_t row, const GradStats& squares) {
    if (call.grad(row) == nullptr) return;
    plan_row<Rule>(call, row, lr_factor, [&](const HyperParams& hyper, int64_t numel, RowStep& step) {
      const double norm = load(work.row_norms + row), grad_norm = squares.power.norm(2.0);
      plan_by_norms<Rule>(call.step, hyper, numel, norm, grad_norm, decision.clip_coef, step);
    });
  });
}

// All rows of an update without statistics, whose caller knows what gradients are multiplied by.
template <class Rule>
GRADOPS_DEVICE void plan_rows_alone(const Call& call, GradStats (&scratch)[kWarps]) {
  if constexpr (!kNeedsNorms<Rule>) {
    plan_rows<Rule>(call, scratch);
  } else {
    for_each_row(call.step.table, nullptr, 2.0, scratch, [&](int32_t row, const GradStats&) {
      if (call.grad(row) == nullptr) return;
      plan_row<Rule>(call, row, 1.0, [&](const HyperParams&, int64_t, RowStep& step) {
        step.grad_factor = load(call.step.grad_factors + row);
      });
    });
  }
}

}  // namespace gradops::cuda
