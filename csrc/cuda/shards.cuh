// What the kernels that record and those that merge share: their arguments, and which row a warp takes.
#pragma once

#include "cuda/agc.cuh"
#include "cuda/launch.cuh"
#include "cuda/shards.h"

namespace gradops::cuda {

// Of a call's arguments what work on rows needs; SmallArgs have the room of 4 KB filled.
struct ShardArgs : InlineArgs<SmallArgs::kMaxGrads, 1> {
  ShardWork work;

  ShardArgs(const StepCall& call, const ShardWork& of) : InlineArgs{}, work(of) {
    step = call.args;
    std::copy_n(call.grads.begin(), call.inline_rows(), grads);
  }
};
static_assert(sizeof(ShardArgs) <= kSmallParams);

// One row, or the last column, for each warp of the grid.
GRADOPS_DEVICE int32_t row_of_warp() { return static_cast<int32_t>(blockIdx.x * kWarps + threadIdx.x / 32); }

// Whether the row is one unit of which this process has elements that are clipped.
GRADOPS_DEVICE bool shares_unit(const Call& call, const ShardArgs& args, int32_t row) {
  if (!args.work.lines.units || load(args.work.is_one_unit + row) == 0 || call.grad(row) == nullptr) return false;
  return load(&call.step.units.rows[row].count) != 0;
}

}  // namespace gradops::cuda
