// What test_step.py calls: steps of a plan by the emulated kernels.
#include "emulated_plan.h"

extern "C" {

Plan* plan_new(const char* rule, const RowSpec* rows, int64_t count, int64_t blocks, int64_t one_launch,
               int64_t slots) {
  LaunchForm form;
  form.one_launch = one_launch != 0;
  form.large_params = true;
  form.blocks = static_cast<int32_t>(blocks);
  form.shared_slots = static_cast<int32_t>(slots);
  form.shared_bytes = shared_bytes(form.shared_slots);
  return new Plan(rule, rows_of(rows, count), units_of(rows, count), form);
}

void plan_delete(Plan* plan) { delete plan; }

int64_t plan_pieces(const Plan* plan) { return static_cast<int64_t>(plan->table_host.pieces.size()); }
int64_t plan_chunks(const Plan* plan) { return plan->table_host.chunk_count(); }
// The most pieces of a block.
int64_t plan_longest_share(const Plan* plan) {
  int32_t longest = 0;
  for (int32_t b = 0; b < plan->form.blocks; ++b) {
    const int32_t first = plan->block_chunks.data()[b], last = plan->block_chunks.data()[b + 1];
    longest = std::max(longest, plan->table_host.chunk_pieces[last] - plan->table_host.chunk_pieces[first]);
  }
  return longest;
}

void plan_step(const Plan* plan, const StepSpec* spec, const void* const* grads, const GroupSpec* groups,
               int64_t group_count) {
  plan->watch();
  std::vector<GroupRule> rules;
  for (int64_t g = 0; g < group_count; ++g) rules.push_back(group_of(plan->rule, groups[g]));
  const DeviceArray<GroupRule> device_rules(rules);
  const DeviceArray<const void*> device_grads(std::vector<const void*>(grads, grads + plan->rows_host.size()));
  StepArgs args = plan->args();
  args.policies = policies_of(*spec);
  args.policies.gathers_squares = args.caps() || args.policies.track_updates || plan->rule.grad_factor != nullptr;
  args.stats = spec->stats;
  args.loss_scale = spec->loss_scale;
  args.found_inf = spec->found_inf;
  args.grads_scaled = spec->grads_scaled != 0;
  if (!spec->inline_params) {
    device_rules.watch("table", false);
    device_grads.watch("table", false);
    args.groups = device_rules.data();
    args.grads = device_grads.data();
  }
  const StepCall call{args, {grads, plan->rows_host.size()}, rules};
  const RuleKernels& kernels = *plan->rule.cuda;
  (std::isinf(spec->agc_ratio) ? kernels.step : kernels.agc_step)(plan->form, call, nullptr);
}

void plan_param_stats(const Plan* plan, const uint8_t* marked) {
  plan->watch();
  param_stats(plan->form, plan->args(), marked, nullptr);
}

}  // extern "C"

extern "C" {

// The pieces of a step, each over the rows of a plan: 0 measures the gradients and scales them in place by `scale_by`,
// 1 updates by what the scalars say.
void plan_piece(const Plan* plan, const StepSpec* spec, const float* clip_coef, const void* const* grads,
                const GroupSpec* group, int64_t which, int64_t scale_by) {
  plan->watch();
  const GroupRule rule = group_of(plan->rule, *group);
  StepArgs args = plan->args();
  args.policies = policies_of(*spec);
  args.stats = spec->stats;
  args.loss_scale = spec->loss_scale;
  args.found_inf = spec->found_inf;
  args.clip_coef = clip_coef;
  args.grads_scaled = true;
  const StepCall call{args, {grads, plan->rows_host.size()}, {&rule, 1}};
  if (which == 0) return grad_stats(plan->form, call, static_cast<ScaleBy>(scale_by), nullptr);
  plan->rule.cuda->update(plan->form, call, nullptr);
}

void move_loss_scale(float* scale, int64_t* growth_tracker, const float* found_inf, int64_t growth_interval) {
  LossScalePolicy policy;
  policy.growth_interval = growth_interval;
  update_loss_scale(scale, growth_tracker, found_inf, policy, nullptr);
}

}  // extern "C"
