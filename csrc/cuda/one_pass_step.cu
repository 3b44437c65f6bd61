// The whole step in one cooperative launch: one block on each multiprocessor, gradients parked on the chip between the
// two phases, one grid barrier.
//
// Bytes of device memory for an element, with P and G the bytes of a stored parameter and gradient:
//     2 P + G + 16        parked: 28 for float32, 22 for 16-bit parameters and gradients
//     2 P + 2 G + 16      read twice: 32 and 24; what is still in the L2 cache costs nothing the second time
// and 8 more with amsgrad. Beside that come the tables: a few bytes for each piece, chunk and row.
#include "cuda/adam_step.cuh"

namespace gradops::cuda {

// A thread has 128 registers, since a multiprocessor has 65536: 64 of them park four pieces.
constexpr int kRegisterSlots = 4;

template <class Args>
__global__ void __launch_bounds__(kThreads, 1) one_pass_step_kernel(const Args __grid_constant__ args) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  const BlockShare share(args.step.table);
  Parking<kRegisterSlots> parking;
  parking.shared = memory + sizeof(SharedState) / sizeof(float4);
  parking.shared_slots = args.step.shared_slots;
  measure(call, share, shared.scratch, parking);
  cooperative_groups::this_grid().sync();
  settle(call, share, shared, parking);
}

template __global__ void one_pass_step_kernel<SmallArgs>(const SmallArgs __grid_constant__);
template __global__ void one_pass_step_kernel<LargeArgs>(const LargeArgs __grid_constant__);

}  // namespace gradops::cuda
