// A step of shards: the launches of two_launch_step.cuh and agc_step.cuh, cut where the processes exchange what they
// have measured. The second and the third call read the merged sums as if each row had one chunk, of the whole row: see
// shards.h.
//
// Bytes of device memory for an element: those of these steps. Beside that a row's sums (32) are written once and read
// by every block, in place of its chunks'; and 24 to 48 bytes a row are written, sent and read for each process.
#pragma once

#include "cuda/agc_step.cuh"
#include "cuda/two_launch_step.cuh"
#include "cuda/update_step.cuh"

namespace gradops::cuda {

// Before the exchange. Rows that nothing of it decides are planned here.
template <class Rule>
void measure_shards(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  if (args.step.table.averaged) launch_plan_averages(form, args, stream);
  if (args.step.units.rows == nullptr) {
    return launch("measure", measure_kernel<Rule>, form.blocks, kSharedStateBytes, false, stream, args);
  }
  const int64_t staged = kSharedStateBytes + kStagingBytes;
  launch("measure_units", measure_units_kernel<Rule>, form.blocks, staged, false, stream, args);
}

// After it: the rows that it decides, with the elements and the sums of whole rows.
template <class Rule>
void plan_shards(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  if constexpr (kMayPlanByGrads<Rule>) {
    if (plans_by_grads<Rule>(args.step)) {
      const auto plan = plan_rows_by_grads_kernel<Rule>;
      return launch("plan_rows_by_grads", plan, form.blocks, kSharedStateBytes, false, stream, args);
    }
  }
  if (args.step.caps())
    launch("plan_rows", plan_rows_kernel<Rule>, form.blocks, kSharedStateBytes, false, stream, args);
}

// The rest, with the process's own elements and the sums of whole rows.
template <class Rule>
void update_shards(const LaunchForm& form, const StepCall& call, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  if (args.step.units.rows == nullptr) {
    const auto update = args.step.has_extras() ? update_kernel<Rule, true> : update_kernel<Rule, false>;
    return launch("update", update, form.blocks, kSharedStateBytes, false, stream, args);
  }
  launch_decide_units(form, args, stream);
  const auto update = args.step.has_extras() ? update_units_kernel<Rule, true> : update_units_kernel<Rule, false>;
  launch("update_units", update, form.blocks, kSharedStateBytes, false, stream, args);
}

}  // namespace gradops::cuda
