// What test_shard_halves.py calls: the two halves of a step of one of several processes, which the caller lets exchange
// what lies in host memory.
#include "cuda/shards.h"
#include "emulated_plan.h"

extern "C" {

// The rows as wholes, and what travels.
struct ShardSpec {
  const int64_t* whole_numel;
  const uint8_t* is_one_unit;
  double* records;
  const double* gathered;
  const bool* counts;
  int64_t processes;
};

}  // extern "C"

namespace {

std::vector<TensorRow> rows_of_one_chunk(std::vector<TensorRow> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].first_chunk = static_cast<int32_t>(i);
    rows[i].chunks = 1;
  }
  return rows;
}

std::vector<TensorRow> rows_as_wholes(std::vector<TensorRow> rows, const int64_t* numel) {
  for (size_t i = 0; i < rows.size(); ++i) rows[i].numel = numel[i];
  return rows;
}

// What a process keeps from one half to the other.
struct Shard {
  const Plan& plan;
  DeviceArray<TensorRow> own_rows, whole_rows;
  DeviceArray<GradStats> grads, params;
  DeviceArray<const void*> takes_part;

  Shard(const Plan& of, const int64_t* whole_numel)
      : plan(of),
        own_rows(rows_of_one_chunk(of.rows_host)),
        whole_rows(rows_as_wholes(rows_of_one_chunk(of.rows_host), whole_numel)),
        grads(of.rows_host.size()),
        params(of.rows_host.size()),
        takes_part(of.rows_host.size()) {}

  void watch() const {
    plan.watch();
    own_rows.watch("table", false);
    whole_rows.watch("table", false);
    grads.watch("whole_sums", true);
    params.watch("whole_sums", true);
    takes_part.watch("whole_sums", true);
  }

  StepArgs deciding(StepArgs args, const TensorRow* rows) const {
    args.table.rows = rows;
    args.table.chunk_count = args.table.row_count;
    args.work.grad_sums = grads.data();
    return args;
  }
};

}  // namespace

extern "C" {

Shard* shard_new(const Plan* plan, const int64_t* whole_numel) { return new Shard(*plan, whole_numel); }
void shard_delete(Shard* shard) { delete shard; }

// 0 measures and records, 1 merges and updates, 2 records the update, 3 writes it.
void shard_half(const Shard* shard, int64_t which, const StepSpec* spec, const ShardSpec* of, const void* const* grads,
                const GroupSpec* groups, int64_t group_count) {
  shard->watch();
  const Plan& plan = shard->plan;
  std::vector<GroupRule> rules;
  for (int64_t g = 0; g < group_count; ++g) rules.push_back(group_of(plan.rule, groups[g]));
  const bool any_grad = std::any_of(grads, grads + plan.rows_host.size(), [](const void* p) { return p != nullptr; });
  StepArgs args = plan.args();
  args.policies = policies_of(*spec);
  const bool compares = args.caps() || plan.rule.grad_factor != nullptr;
  args.policies.gathers_squares = compares || args.policies.track_updates;
  args.stats = spec->stats;
  args.loss_scale = spec->loss_scale;
  args.found_inf = spec->found_inf;
  args.grads_scaled = spec->grads_scaled != 0;
  if (std::isinf(spec->agc_ratio)) args.units = {}, args.unit_work = {};
  const StepCall call{args, {grads, plan.rows_host.size()}, rules};
  StepCall whole = call, own = call;
  own.args = shard->deciding(args, shard->own_rows.data());
  whole.args = shard->deciding(args, shard->whole_rows.data());
  whole.args.work.param_sums = shard->params.data();
  ShardWork work;
  work.grads = shard->grads.data();
  work.params = shard->params.data();
  work.takes_part = shard->takes_part.data();
  work.is_one_unit = of->is_one_unit;
  work.records = of->records;
  work.gathered = of->gathered;
  work.counts = of->counts;
  work.processes = static_cast<int32_t>(of->processes);
  work.lines = {compares, args.units.rows != nullptr};
  const RuleKernels& kernels = *plan.rule.cuda;
  if (which == 0) {
    kernels.measure_shards(plan.form, call, nullptr);
    record_rows(plan.form, call, work, nullptr);
  } else if (which == 1) {
    merge_rows(call, work, nullptr);
    if (!any_grad) return decide_without_grads(plan.form, whole, work, nullptr);
    kernels.plan_shards(plan.form, whole, nullptr);
    kernels.update_shards(plan.form, own, nullptr);
  } else if (which == 2) {
    record_updates(plan.form, call, work, any_grad, nullptr);
  } else {
    write_shared_updates(whole, work, nullptr);
  }
}

}  // extern "C"
