// Statistics alone: sums of squares of parameters that are not known from the update that wrote them.
#include "cuda/grad_stats.cuh"
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
    load_piece<2>(piece.of(&TensorRow::param), 0, lanes, UsedOnce(), param);
    const ChunkStats stats = piece_stats(param, piece.n, lanes, GradRule{}, Norm{NormType::kL2, 2.0f});
    if (threadIdx.x % 32 == 0) store_struct(work.piece_stats + share.piece(slot), stats);
  }
  merge_pieces(table, share, work.piece_stats, work.param_sums, 2.0, skips);
}

void param_stats(const LaunchForm& form, const StepArgs& args, const uint8_t* marked, Stream stream) {
  launch("param_stats", param_stats_kernel, form.blocks, 0, false, stream, args.table, args.work, marked);
}

}  // namespace gradops::cuda
