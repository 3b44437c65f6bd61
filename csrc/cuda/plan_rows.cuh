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

// Whether the bound on a row's step depends on its gradient.
template <class Rule>
GRADOPS_DEVICE bool caps_by_grads(const StepArgs& step) {
  return !Rule::kScaleFree && step.caps();
}

// Writes the rule of a row whose learning rate is `limit(lr, group, numel, step)` where it is capped.
template <class Rule, class Limit>
GRADOPS_DEVICE void plan_row(const Call& call, int32_t index, double lr_factor, const Limit& limit) {
  const TensorRow* row = call.step.table.rows + index;
  const GroupRule group = call.group(load(&row->group));
  const double step = static_cast<double>(load(load(&row->step))) + 1.0;
  const double group_lr = current_lr(group) * lr_factor;
  double lr = group_lr;
  if (call.step.caps()) lr = limit(group_lr, group.hyper, load(&row->numel), step);
  RowRule rule = row_rule<Rule>(group.hyper, lr, step);
  rule.capped = lr < group_lr;
  store_struct(call.step.work.row_rules + index, rule);
}

// All rows, unless plan_rows_by_grads follows. It depends on nothing that the gradients decide, so it is done while
// they are on their way.
template <class Rule>
GRADOPS_DEVICE void plan_rows(const Call& call, GradStats (&scratch)[kWarps]) {
  if (caps_by_grads<Rule>(call.step)) return;
  const RelativeStepRule relative_step = call.step.rules.relative_step;
  const double lr_factor = guard_state(call.step).lr_factor;
  const GradStats* param_sums = call.step.caps() ? call.step.work.param_sums : nullptr;
  for_each_row(call.step.table, param_sums, 2.0, scratch, [&](int32_t index, const GradStats& squares) {
    if (call.grad(index) == nullptr) return;
    plan_row<Rule>(call, index, lr_factor, [&](double lr, const HyperParams&, int64_t numel, double step) {
      return capped_lr(lr, rms_of(squares.power.norm(2.0), numel), step, relative_step);
    });
  });
}

// The same after the decision, for rules whose step is bounded by the size of the clipped gradient.
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
    plan_row<Rule>(call, row, lr_factor, [&](double lr, const HyperParams& hyper, int64_t numel, double step) {
      const double rms = rms_of(load(work.row_norms + row), numel);
      const double grad_rms = decision.clip_coef * rms_of(squares.power.norm(2.0), numel);
      return capped_lr(lr, rms, step, call.step.rules.relative_step, rms_per_lr(hyper, rms, grad_rms));
    });
  });
}

}  // namespace gradops::cuda
