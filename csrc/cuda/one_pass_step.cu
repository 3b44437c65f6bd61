// The whole step in one cooperative launch: one block on each multiprocessor, gradients parked on the chip between the
// two phases, one grid barrier. Where that cannot be, the same phases in two launches.
//
// Bytes of device memory for an element, with P and G the bytes of a stored parameter and gradient:
//     2 P + G + 16        parked: 28 for float32, 22 for 16-bit parameters and gradients
//     2 P + 2 G + 16      read twice: 32 and 24; what is still in the L2 cache costs nothing the second time
// and 8 more with amsgrad. The tables add 56 bytes a piece: its place (8) is read in both phases, its statistics (16)
// are written and read, half as much again goes for its share of a chunk's.
#include "cuda/adam_step.cuh"
#include "cuda/launch.cuh"

namespace gradops::cuda {

// A thread has 255 registers: 128 of them park eight pieces, the rest is what an update needs.
constexpr int kRegisterSlots = 8;
static_assert(sizeof(SharedState) <= kSharedStateBytes);

GRADOPS_DEVICE float4* parking_place(SharedState& shared) {
  return reinterpret_cast<float4*>(&shared) + kSharedStateBytes / sizeof(float4);
}

template <class Args>
__global__ void __launch_bounds__(kThreads, 1) one_pass_step_kernel(const Args __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  const BlockShare share(args.step.table);
  Parking<kRegisterSlots> parking{.shared = parking_place(shared), .shared_slots = args.step.shared_slots};
  measure(call, share, shared.scratch, parking);
  cooperative_groups::this_grid().sync();
  settle(call, share, shared, parking);
}

template <class Args>
__global__ void __launch_bounds__(kThreads, 2) first_launch_kernel(const Args __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  Parking<0> parking{.shared = nullptr, .shared_slots = 0};
  measure(call, BlockShare(args.step.table), shared.scratch, parking);
}

template <class Args>
__global__ void __launch_bounds__(kThreads, 2) second_launch_kernel(const Args __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  settle(call, BlockShare(args.step.table), shared, Parking<0>{.shared = nullptr, .shared_slots = 0});
}

namespace {

template <class Args>
void launch_step(const LaunchForm& form, const StepArgs& step, std::span<const void* const> grads,
                 std::span<const GroupRule> groups, Stream stream) {
  Args args;
  args.step = step;
  args.step.shared_slots = form.shared_slots;
  if (step.grads == nullptr) std::copy(grads.begin(), grads.end(), args.grads);
  if (step.groups == nullptr) std::copy(groups.begin(), groups.end(), args.groups);
  if (form.one_launch) {
    launch("one_pass_step", one_pass_step_kernel<Args>, form.blocks, form.shared_bytes, true, stream, args);
    return;
  }
  launch("one_pass_step (first launch)", first_launch_kernel<Args>, form.blocks, form.shared_bytes, false, stream,
         args);
  launch("one_pass_step (second launch)", second_launch_kernel<Args>, form.blocks, form.shared_bytes, false, stream,
         args);
}

template <class Args>
bool fits(size_t rows, size_t groups) {
  return rows <= Args::kMaxGrads && groups <= Args::kMaxGroups;
}

}  // namespace

bool travels_inline(const LaunchForm& form, size_t rows, size_t groups) {
  return fits<SmallArgs>(rows, groups) || (form.large_params && fits<LargeArgs>(rows, groups));
}

void one_pass_step(const LaunchForm& form, StepArgs args, std::span<const void* const> grads,
                   std::span<const GroupRule> groups, Stream stream) {
  const size_t inline_rows = args.grads == nullptr ? grads.size() : 0;
  const size_t inline_groups = args.groups == nullptr ? groups.size() : 0;
  if (!travels_inline(form, inline_rows, inline_groups)) {
    throw std::invalid_argument("gradops: " + std::to_string(inline_rows) + " gradients and " +
                                std::to_string(inline_groups) + " param groups do not fit into kernel parameters");
  }
  if (fits<SmallArgs>(inline_rows, inline_groups)) return launch_step<SmallArgs>(form, args, grads, groups, stream);
  launch_step<LargeArgs>(form, args, grads, groups, stream);
}

}  // namespace gradops::cuda
