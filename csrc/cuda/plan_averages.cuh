// What each row's average takes of it in this step, in device code. Kernels that are for nothing else do it, and those
// that have extras.
#pragma once

#include "cuda/multi_tensor.cuh"
#include "math/ema.h"

namespace gradops::cuda {

GRADOPS_DEVICE void plan_averages(const Call& call, GradStats (&scratch)[kWarps]) {
  if (!call.step.table.averaged) return;
  for_each_row(call.step.table, nullptr, 2.0, scratch, [&](int32_t index, const GradStats&) {
    if (call.grad(index) == nullptr) return;
    const double step = static_cast<double>(load(load(&call.step.table.rows[index].step))) + 1.0;
    store(call.step.work.ema_weights + index, ema_weight(call.step.policies.ema, step));
  });
}

}  // namespace gradops::cuda
