// Records what the other processes need of this one: a few numbers a row, in float64.
//
// The records have a launch of their own. The last block of the measuring could write them, but alone it would take
// longer for the sums of a large table (32 bytes for 8192 elements) than all blocks do, and the launch with it.
#include "cuda/shards.cuh"

namespace gradops::cuda {

GRADOPS_DEVICE double* record_of(const ShardArgs& args, int32_t line, int32_t row) {
  return args.work.records + int64_t{line} * (args.step.table.row_count + 1) + row;
}

// Sums of a row that is one unit, of all its segments; the same in each lane of the warp.
GRADOPS_DEVICE UnitNorms norms_of_one_unit(const Call& call, RowUnits units) {
  units.lanes = 32;
  UnitNorms norms = unit_norms(call, units, 0, threadIdx.x % 32);
  norms.merge_lanes(32);
  return norms;
}

GRADOPS_DEVICE void record_units(const Call& call, const ShardArgs& args) {
  const int32_t line = args.work.lines.unit_line();
  const int32_t stride = static_cast<int32_t>(gridDim.x * kWarps);
#pragma unroll 1
  for (int32_t row = row_of_warp(); row < args.step.table.row_count; row += stride) {
    UnitNorms norms;
    if (shares_unit(call, args, row)) norms = norms_of_one_unit(call, load_struct(call.step.units.rows + row));
    if (threadIdx.x % 32 != 0) continue;
    store(record_of(args, line, row), norms.grad.norm(2.0));
    store(record_of(args, line + 1, row), norms.param.norm(2.0));
  }
}

__global__ void __launch_bounds__(kThreads, 2) record_rows_kernel(const ShardArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  const StepArgs& step = args.step;
  const double p = step.policies.norm_type;
  for_each_row(step.table, step.work.grad_sums, p, shared.scratch, [&](int32_t row, const GradStats& stats) {
    const bool has_grad = call.grad(row) != nullptr;
    store(record_of(args, kGradNorms, row), stats.power.norm(p));
    store(record_of(args, kAbsMax, row), has_grad ? static_cast<double>(stats.abs_max_bits) : kTakesNoPart);
    store(record_of(args, kNonfinite, row), static_cast<double>(stats.nonfinite));
  });
  if (args.work.lines.params) {
    for_each_row(step.table, step.work.param_sums, 2.0, shared.scratch, [&](int32_t row, const GradStats& squares) {
      store(record_of(args, kParamNorms, row), call.grad(row) != nullptr ? squares.power.norm(2.0) : 0.0);
    });
  }
  if (args.work.lines.units) record_units(call, args);
  const int32_t line = threadIdx.x;
  if (blockIdx.x != 0 || line >= args.work.lines.count()) return;
  const bool found_inf = load(&step.work.inputs->found_inf) != 0;
  store(record_of(args, line, step.table.row_count), line == kAbsMax && found_inf ? 1.0 : 0.0);
}

__global__ void __launch_bounds__(kThreads, 2)
    record_updates_kernel(const ShardArgs __grid_constant__ args, const int32_t any_grad) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  const StepArgs& step = args.step;
  const bool tracks = step.policies.track_updates && any_grad != 0;
  const auto record = [&](int32_t line, const GradStats* sums) {
    for_each_row(step.table, tracks ? sums : nullptr, 2.0, shared.scratch, [&](int32_t row, const GradStats& squares) {
      store(record_of(args, line, row), call.grad(row) != nullptr ? squares.power.norm(2.0) : 0.0);
      store(record_of(args, kSmallestCoef, row), 0.0);
    });
  };
  record(kMovedNorms, step.work.moved_sums);
  record(kNewNorms, step.work.param_sums);
  const int32_t line = threadIdx.x;
  if (blockIdx.x != 0 || line >= kUpdateLines) return;
  const int32_t* smallest = any_grad != 0 ? step.unit_work.smallest_coef : nullptr;
  const double coef = smallest != nullptr ? static_cast<double>(bits_float(load(smallest))) : 1.0;
  store(record_of(args, line, step.table.row_count), line == kSmallestCoef ? -coef : 0.0);
}

void record_rows(const LaunchForm& form, const StepCall& call, const ShardWork& work, Stream stream) {
  launch("record_rows", record_rows_kernel, form.blocks, kSharedStateBytes, false, stream, ShardArgs(call, work));
}

void record_updates(const LaunchForm& form, const StepCall& call, const ShardWork& work, bool any_grad, Stream stream) {
  launch("record_updates", record_updates_kernel, form.blocks, kSharedStateBytes, false, stream, ShardArgs(call, work),
         int32_t{any_grad});
}

}  // namespace gradops::cuda
