// The whole step in one cooperative launch: one block on each multiprocessor, gradients parked on the chip between the
// two phases, one grid barrier.
//
// Bytes of device memory for an element, with P and G the bytes of a stored parameter and gradient
// and M the float32 moments that its update uses:
//     2 P + G + 8 M       parked: with two moments, as Adam's, 28 for float32, 22 for 16-bit parameters and gradients
//     2 P + 2 G + 8 M     read twice: 32 and 24; what is still in the L2 cache costs nothing the second time
// and half of what moments take with bfloat16 moments; with a float32 master P is 4, and 2 more for the rounded
// parameter; with a compensation twice its bytes, 4, more, and with an average 8. Nothing more where updates are
// tracked, for which a second grid barrier is crossed. Beside that, for a piece of 512 elements, its place (8) is read
// in both phases and its sums (16) are written and read; a chunk's sums (32) are written and then read by every block,
// from the L2 cache.
#pragma once

#include "cuda/plan_averages.cuh"
#include "cuda/two_launch_step.cuh"
#include "cuda/write_updates.cuh"

namespace gradops::cuda {

static_assert(sizeof(SharedState) <= kSharedStateBytes);

GRADOPS_DEVICE float4* parking_place(SharedState& shared) {
  return reinterpret_cast<float4*>(&shared) + kSharedStateBytes / sizeof(float4);
}

// A tracked update keeps what it moves a piece by in 16 registers and looks at it with more, and a compensated one
// keeps what rounding takes off: four slots, so that none spill.
template <bool kExtras>
constexpr int kSlotsInRegisters = kExtras ? kRegisterSlots - 4 : kRegisterSlots;

template <class Rule, class Args, bool kExtras>
__global__ void __launch_bounds__(kThreads, 1) one_pass_step_kernel(const Args __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  const BlockShare share(args.step.table);
  Parking<kSlotsInRegisters<kExtras>> parking{.shared = parking_place(shared), .shared_slots = args.step.shared_slots};
  plan_rows<Rule>(call, shared.scratch);
  if constexpr (kExtras) plan_averages(call, shared.scratch);
  measure(call, share, parking);
  cooperative_groups::this_grid().sync();
  decide_by_block(call, shared);
  if (plans_by_grads<Rule>(args.step) && !shared.decision.skip) {
    plan_rows_by_grads<Rule>(call, shared.decision, shared.scratch);
    cooperative_groups::this_grid().sync();
  }
  carry_out<Rule, kExtras>(call, share, shared, parking);
  if (kExtras && args.step.policies.track_updates) {
    cooperative_groups::this_grid().sync();
    write_updates(call, shared.decision.skip, shared.scratch);
  }
}

template <class Rule, class Args>
void launch_one(const LaunchForm& form, const StepCall& call, Stream stream) {
  const auto kernel =
      call.args.has_extras() ? one_pass_step_kernel<Rule, Args, true> : one_pass_step_kernel<Rule, Args, false>;
  launch("one_pass_step", kernel, form.blocks, form.shared_bytes, true, stream, call.packed<Args>(form.shared_slots));
}

#ifndef GRADOPS_EMULATE
template <class Rule>
int make_one_pass_ready(int64_t shared_limit) {
  int resident = 2;
  for (const void* kernel : {reinterpret_cast<const void*>(one_pass_step_kernel<Rule, SmallArgs, false>),
                             reinterpret_cast<const void*>(one_pass_step_kernel<Rule, LargeArgs, false>),
                             reinterpret_cast<const void*>(one_pass_step_kernel<Rule, SmallArgs, true>),
                             reinterpret_cast<const void*>(one_pass_step_kernel<Rule, LargeArgs, true>)}) {
    const int bytes = static_cast<int>(shared_bytes(shared_slots(shared_limit)));
    int blocks = 0;
    const bool fits_at_all =
        shared_limit >= kSharedStateBytes &&
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess &&
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, bytes) == cudaSuccess;
    resident = std::min(resident, fits_at_all ? blocks : 0);
  }
  cudaGetLastError();  // what was refused is answered by 0, and must not be found by others
  return resident;
}
#endif

template <class Rule>
void one_pass_step(const LaunchForm& form, const StepCall& call, Stream stream) {
  if (!travels_inline(form, call.inline_rows(), call.inline_groups())) {
    throw std::invalid_argument("gradops: " + std::to_string(call.inline_rows()) + " gradients and " +
                                std::to_string(call.inline_groups()) + " param groups do not fit into the parameters " +
                                "of a kernel; give them as device arrays");
  }
  if (!form.one_launch) return two_launch_step<Rule>(form, call, stream);
  if (fits<SmallArgs>(call.inline_rows(), call.inline_groups())) return launch_one<Rule, SmallArgs>(form, call, stream);
  launch_one<Rule, LargeArgs>(form, call, stream);
}

}  // namespace gradops::cuda
