// Merges the records of all processes to whole rows: before the decision, and after the update.
#include "cuda/shards.cuh"
#include "math/update_stats.h"

namespace gradops::cuda {

// What the processes have recorded of one row, a line each.
struct RowRecords {
  const ShardWork& work;
  int32_t row, rows, lines;

  GRADOPS_DEVICE double number(int32_t process, int32_t line) const {
    return load(work.gathered + (int64_t{process} * lines + line) * (rows + 1) + row);
  }
  GRADOPS_DEVICE bool counts(int32_t process) const {
    return work.counts == nullptr || load(work.counts + int64_t{process} * rows + row);
  }

  // Norms of parts, of the processes that count; the same in each lane of the warp, and on each process.
  GRADOPS_DEVICE PowerSum norms(int32_t line, double p) const {
    GradStats sum;
#pragma unroll 1
    for (int32_t process = threadIdx.x % 32; process < work.processes; process += 32) {
      const double norm = number(process, line);
      if (norm > 0.0 && counts(process)) sum.power.merge(1.0, norm, p);
    }
    merge_lanes<32>(sum, p);
    return sum.power;
  }

  // The largest of a line of whole numbers that fit 32 bits, of all processes.
  GRADOPS_DEVICE int32_t largest(int32_t line) const {
    GradStats found;
    found.abs_max_bits = static_cast<int32_t>(kTakesNoPart);
#pragma unroll 1
    for (int32_t process = threadIdx.x % 32; process < work.processes; process += 32) {
      const int32_t value = static_cast<int32_t>(number(process, line));
      found.abs_max_bits = value > found.abs_max_bits ? value : found.abs_max_bits;
    }
    merge_lanes<32>(found, 2.0);
    return found.abs_max_bits;
  }

  GRADOPS_DEVICE int64_t sum(int32_t line) const {
    GradStats sum;
#pragma unroll 1
    for (int32_t process = threadIdx.x % 32; process < work.processes; process += 32) {
      if (counts(process)) sum.nonfinite += static_cast<int64_t>(number(process, line));
    }
    merge_lanes<32>(sum, 2.0);
    return sum.nonfinite;
  }
};

// In place of the sums of its segments the row has its whole norms, in the first.
GRADOPS_DEVICE void spread_units(const Call& call, const RowRecords& records, int32_t line) {
  const RowUnits units = load_struct(call.step.units.rows + records.row);
  const float grad = static_cast<float>(records.norms(line, 2.0).norm(2.0));
  const float param = static_cast<float>(records.norms(line + 1, 2.0).norm(2.0));
#pragma unroll 1
  for (int64_t i = threadIdx.x % 32; i < units.pieces_of_run; i += 32) {
    const float one = i == 0 ? 1.0f : 0.0f;
    const UnitSquares squares{grad > 0.0f ? one : 0.0f, grad, param > 0.0f ? one : 0.0f, param};
    store_struct(call.step.unit_work.segments + units.first_segment + i, squares);
  }
}

__global__ void __launch_bounds__(kThreads, 2) merge_rows_kernel(const ShardArgs __grid_constant__ args) {
  const Call call(args);
  const ShardWork& work = args.work;
  const int32_t rows = args.step.table.row_count, lane = threadIdx.x % 32;
  const RowRecords records{work, row_of_warp(), rows, work.lines.count()};
  if (records.row > rows) return;
  if (records.row == rows) {
    const int32_t found_inf = records.largest(kAbsMax) > 0;
    if (lane == 0) store(&args.step.work.inputs->found_inf, found_inf);
    return;
  }
  const int32_t abs_max_bits = records.largest(kAbsMax);
  GradStats grads;
  grads.power = records.norms(kGradNorms, args.step.policies.norm_type);
  grads.abs_max_bits = abs_max_bits > 0 ? abs_max_bits : 0;
  grads.nonfinite = records.sum(kNonfinite);
  // Only a replica has seen it, whose numbers do not count.
  if (grads.nonfinite == 0 && abs_max_bits >= kInfBits) grads.nonfinite = 1;
  GradStats params;
  if (work.lines.params) params.power = records.norms(kParamNorms, 2.0);
  if (lane == 0) {
    const bool takes_part = abs_max_bits != static_cast<int32_t>(kTakesNoPart);
    store(work.takes_part + records.row, takes_part ? static_cast<const void*>(work.takes_part) : nullptr);
    store_struct(work.grads + records.row, grads);
    if (work.lines.params) store_struct(work.params + records.row, params);
  }
  if (shares_unit(call, args, records.row)) spread_units(call, records, work.lines.unit_line());
}

// Whether any process has a gradient; every thread of the block must ask.
GRADOPS_DEVICE bool anybody_takes_part(const ShardArgs& args) {
  bool any = false;
#pragma unroll 1
  for (int32_t row = threadIdx.x; row < args.step.table.row_count && !any; row += kThreads) {
    any = load(args.work.takes_part + row) != nullptr;
  }
  return __syncthreads_or(any) != 0;
}

__global__ void __launch_bounds__(kThreads, 2) decide_without_grads_kernel(const ShardArgs __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  if (!anybody_takes_part(args)) return;
  decide_by_block(Call(args), shared);
  write_rows(Call(args), shared);
}

// The smallest factor of a unit of any process.
GRADOPS_DEVICE float smallest_coef(const RowRecords& records) {
  int32_t largest = 0;
  const int32_t one = float_bits(1.0f);
#pragma unroll 1
  for (int32_t process = threadIdx.x % 32; process < records.work.processes; process += 32) {
    const int32_t below = one - float_bits(static_cast<float>(-records.number(process, kSmallestCoef)));
    largest = below > largest ? below : largest;
  }
  return bits_float(one - warp_max(largest));
}

__global__ void __launch_bounds__(kThreads, 2) write_shared_updates_kernel(const ShardArgs __grid_constant__ args) {
  const StatsBuffers& stats = args.step.stats;
  const int32_t rows = args.step.table.row_count, lane = threadIdx.x % 32;
  if (!anybody_takes_part(args)) return;
  const bool guarded_skip = args.step.policies.guard.skips && load(stats.scalars + kGuarded) != 0.0f;
  const bool skip = guarded_skip || load(stats.scalars + kFoundInf) != 0.0f;
  const RowRecords records{args.work, row_of_warp(), rows, kUpdateLines};
  if (records.row > rows) return;
  if (records.row == rows) {
    const float smallest = smallest_coef(records);
    if (lane == 0 && !skip && smallest < load(stats.scalars + kClipCoef)) store(stats.scalars + kClipCoef, smallest);
    return;
  }
  if (!args.step.policies.track_updates) return;
  const double moved = records.norms(kMovedNorms, 2.0).norm(2.0), norm = records.norms(kNewNorms, 2.0).norm(2.0);
  if (lane != 0) return;
  float ratio = update_ratio(moved, norm);
  if (skip) ratio = load(args.work.takes_part + records.row) != nullptr ? NAN : 0.0f;
  store(stats.update_ratio + records.row, ratio);
  if (skip) return;
  const int64_t numel = load(&args.step.table.rows[records.row].numel);
  store(stats.param_rms + records.row, static_cast<float>(rms_of(norm, numel)));
}

static int blocks_for(const StepCall& call) { return (call.args.table.row_count + kWarps) / kWarps; }

void merge_rows(const StepCall& call, const ShardWork& work, Stream stream) {
  launch("merge_rows", merge_rows_kernel, blocks_for(call), 0, false, stream, ShardArgs(call, work));
}

void decide_without_grads(const LaunchForm& form, const StepCall& call, const ShardWork& work, Stream stream) {
  launch("decide_without_grads", decide_without_grads_kernel, form.blocks, kSharedStateBytes, false, stream,
         ShardArgs(call, work));
}

void write_shared_updates(const StepCall& call, const ShardWork& work, Stream stream) {
  launch("write_shared_updates", write_shared_updates_kernel, blocks_for(call), 0, false, stream,
         ShardArgs(call, work));
}

}  // namespace gradops::cuda
