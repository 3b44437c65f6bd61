// What tracked updates leave, in device code.
#pragma once

#include "cuda/multi_tensor.cuh"
#include "math/update_stats.h"

namespace gradops::cuda {

// What a tracked update leaves of each row, once every block is done.
GRADOPS_DEVICE void write_updates(const Call& call, bool skip, GradStats (&scratch)[kWarps]) {
  const StepArgs& step = call.step;
  if (skip) {
    return for_each_row(step.table, nullptr, 2.0, scratch, [&](int32_t row, const GradStats&) {
      store(step.stats.update_ratio + row, call.grad(row) == nullptr ? 0.0f : NAN);
    });
  }
  for_each_row(step.table, step.work.param_sums, 2.0, scratch, [&](int32_t row, const GradStats& squares) {
    const double norm = call.grad(row) == nullptr ? 0.0 : squares.power.norm(2.0);
    store(step.stats.param_rms + row, static_cast<float>(rms_of(norm, load(&step.table.rows[row].numel))));
    store(step.work.row_norms + row, norm);
  });
  // The thread that is given a row is the same as before.
  for_each_row(step.table, step.work.moved_sums, 2.0, scratch, [&](int32_t row, const GradStats& squares) {
    const double moved = call.grad(row) == nullptr ? 0.0 : squares.power.norm(2.0);
    store(step.stats.update_ratio + row, update_ratio(moved, load(step.work.row_norms + row)));
  });
}

}  // namespace gradops::cuda
