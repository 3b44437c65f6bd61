// Statistics without an update: of gradients, which may then be scaled in place, and of parameters.
#include "cuda/decide.cuh"
#include "cuda/launch.cuh"

namespace gradops::cuda {

__global__ void __launch_bounds__(kThreads, 2)
    param_stats_kernel(const WorkTable table, const Workspace work, const uint8_t* marked) {
  const BlockShare share(table);
  const auto skips = [&](int32_t row) { return marked != nullptr && load(marked + row) == 0; };
#pragma unroll 1
  for (int32_t slot = 0; slot < share.slots(); ++slot) {
    const PieceAt piece(table, share.piece(slot));
    if (skips(piece.row_index)) continue;
    const Lanes lanes = piece.lanes();
    float param[16];
    load_piece<2>(piece.of(kParam), 0, lanes, UsedOnce(), param);
    const ChunkStats stats = piece_stats(param, piece.n, lanes, Unscaling{}, Norm{NormType::kL2, 2.0f});
    if (threadIdx.x % 32 == 0) store_struct(work.piece_stats + share.piece(slot), stats);
  }
  merge_pieces(table, share, work.piece_stats, work.param_sums, 2.0, skips);
}

__global__ void __launch_bounds__(kThreads, 2) grad_stats_kernel(const SmallArgs __grid_constant__ args) {
  Parking<0> nothing{.shared = nullptr, .shared_slots = 0};
  measure(Call(args), BlockShare(args.step.table), nothing);
}

// The block's pieces, backwards: what was read last is the likeliest to be in the L2 cache still.
GRADOPS_DEVICE void scale_pieces(const Call& call, float factor) {
  const BlockShare share(call.step.table);
#pragma unroll 1
  for (int32_t slot = share.slots() - 1; slot >= 0; --slot) {
    const PieceAt piece(call.step.table, share.piece(slot));
    const void* data = call.grad(piece.row_index);
    if (data == nullptr) continue;
    const Lanes lanes = piece.lanes();
    const Stretch grad = piece.grad(data);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float x[8];
      load_piece<1>(grad, half, lanes, UsedOnce(), x);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] *= factor;
      store_piece(grad, half, lanes, x);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    scale_grads_kernel(const SmallArgs __grid_constant__ args, const ScaleBy scale_by) {
  GRADOPS_DYNAMIC_SHARED(float4, memory);
  SharedState& shared = *reinterpret_cast<SharedState*>(memory);
  const Call call(args);
  decide_by_block(call, shared);
  write_rows(call, shared);
  const float inv_scale = shared.decision.inv_scale, clip_coef = shared.decision.clip_coef;
  const float factor = scale_by == ScaleBy::kInvScale ? inv_scale : scale_by == ScaleBy::kClipCoef ? clip_coef : 1.0f;
  if (factor != 1.0f) scale_pieces(call, factor);
}

void grad_stats(const LaunchForm& form, const StepCall& call, ScaleBy scale_by, Stream stream) {
  const SmallArgs args = call.packed<SmallArgs>(0);
  launch("grad_stats", grad_stats_kernel, form.blocks, 0, false, stream, args);
  launch("scale_grads", scale_grads_kernel, form.blocks, kSharedStateBytes, false, stream, args, scale_by);
}

void param_stats(const LaunchForm& form, const StepArgs& args, const uint8_t* marked, Stream stream) {
  launch("param_stats", param_stats_kernel, form.blocks, 0, false, stream, args.table, args.work, marked);
}

}  // namespace gradops::cuda
