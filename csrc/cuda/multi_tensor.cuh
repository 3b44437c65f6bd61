// Many tensors, cut into pieces: the only place in device code that knows how tensors become pieces, chunks and blocks.
#pragma once

#include "cuda/reduce.cuh"

namespace gradops::cuda {

// A kernel's arguments, wherever they came with the launch.
struct Call {
  const StepArgs& step;
  const void* const* inline_grads;
  const GroupRule* inline_groups;

  template <class Args>
  GRADOPS_DEVICE explicit Call(const Args& args)
      : step(args.step), inline_grads(args.grads), inline_groups(args.groups) {}

  GRADOPS_DEVICE const void* grad(int32_t row) const {
    return step.grads != nullptr ? load(step.grads + row) : inline_grads[row];
  }
  GRADOPS_DEVICE GroupRule group(int32_t index) const {
    return step.groups != nullptr ? load_struct(step.groups + index) : inline_groups[index];
  }
  GRADOPS_DEVICE float ema_weight(int32_t row) const { return load(step.work.ema_weights + row); }
};

// A block's run of chunks, and the run of pieces in them.
struct BlockShare {
  int32_t first_chunk, last_chunk;
  int32_t first_piece, last_piece;

  GRADOPS_DEVICE explicit BlockShare(const WorkTable& table) {
    first_chunk = load(table.block_chunks + blockIdx.x);
    last_chunk = load(table.block_chunks + blockIdx.x + 1);
    first_piece = load(table.chunk_pieces + first_chunk);
    last_piece = load(table.chunk_pieces + last_chunk);
  }

  // Pieces are dealt to the warps in turn; a warp's `slot`-th, and how many a warp has.
  GRADOPS_DEVICE int32_t piece(int32_t slot) const { return first_piece + slot * kWarps + threadIdx.x / 32; }
  GRADOPS_DEVICE int32_t slots() const {
    return (last_piece - first_piece - static_cast<int32_t>(threadIdx.x / 32) + kWarps - 1) / kWarps;
  }
};

struct PieceAt {
  const TensorRow* row;
  int32_t row_index;
  int64_t begin;
  int32_t n;

  GRADOPS_DEVICE PieceAt(const WorkTable& table, int32_t index) {
    const Piece piece = load_struct(table.pieces + index);
    row_index = piece.row;
    row = table.rows + piece.row;
    begin = int64_t{piece.index} * kPiece;
    const int64_t left = load(&row->numel) - begin;
    n = static_cast<int32_t>(left < kPiece ? left : kPiece);
  }

  GRADOPS_DEVICE bool has(Slot slot) const { return load(&row->views[slot].data) != nullptr; }
  GRADOPS_DEVICE Stretch of(Slot slot) const { return {load_struct(&row->views[slot]), begin, n}; }
  GRADOPS_DEVICE Stretch grad(const void* data) const {
    Stretch stretch = of(kGrad);
    stretch.view.data = const_cast<void*>(data);
    return stretch;
  }
  GRADOPS_DEVICE Lanes lanes() const {
    static_assert(kMaxMoments == 3);
    return Lanes(!(is_float32(kParam) && is_float32(kRounded) && is_float32(kGrad) && is_float32(moment_slot(0)) &&
                   is_float32(moment_slot(1)) && is_float32(moment_slot(2))));
  }

 private:
  GRADOPS_DEVICE bool is_float32(Slot slot) const { return load(&row->views[slot].dtype) == Dtype::kFloat32; }
};

// Merges what the block's warps wrote of their pieces into one sum a chunk; `skips(row)` leaves a chunk as it was.
template <class Skips>
GRADOPS_DEVICE void merge_pieces(const WorkTable& table, const BlockShare& share, const ChunkStats* pieces,
                                 GradStats* sums, double p, const Skips& skips) {
  __syncthreads();
  const int32_t lane = threadIdx.x % kPiecesPerChunk;
  for (int32_t base = share.first_chunk; base < share.last_chunk; base += kThreads / kPiecesPerChunk) {
    const int32_t chunk = base + threadIdx.x / kPiecesPerChunk;
    GradStats sum;
    int32_t first = 0, count = 0;
    if (chunk < share.last_chunk) {
      first = load(table.chunk_pieces + chunk);
      count = load(table.chunk_pieces + chunk + 1) - first;
    }
    if (lane < count) sum.merge(load_struct(pieces + first + lane), p);
    merge_lanes<kPiecesPerChunk>(sum, p);
    if (lane == 0 && count > 0 && !skips(load_struct(table.pieces + first).row)) store_struct(sums + chunk, sum);
  }
}

// Calls visit(row, merged sums of its chunks) once for each row, on any thread of the grid; the rows are dealt to the
// blocks in turn. Rows of few chunks are merged by one thread each, the others by the whole block. Without `sums` the
// rows are visited with none. Every thread of the block must call it.
template <class Visit>
GRADOPS_DEVICE void for_each_row(const WorkTable& table, const GradStats* sums, double p, GradStats (&scratch)[kWarps],
                                 const Visit& visit) {
  constexpr int32_t kFewChunks = 4;
  const int64_t stride = gridDim.x;
  for (int64_t base = blockIdx.x; base < table.row_count; base += stride * kThreads) {
    const int64_t row = base + stride * threadIdx.x;
    GradStats total;
    bool many = false;
    if (row < table.row_count && sums != nullptr) {
      const int32_t first = load(&table.rows[row].first_chunk);
      const int32_t chunks = load(&table.rows[row].chunks);
      many = chunks > kFewChunks;
      for (int32_t i = 0; !many && i < chunks; ++i) total.merge(load_struct(sums + first + i), p);
    }
    if (__syncthreads_or(many)) {
      for (unsigned owner = 0; owner < kThreads && base + stride * owner < table.row_count; ++owner) {
        const TensorRow* big = table.rows + base + stride * owner;
        const int32_t first = load(&big->first_chunk);
        const int32_t chunks = load(&big->chunks);
        if (chunks <= kFewChunks) continue;
        const GradStats merged = merge_by_block(sums, first, first + chunks, p, scratch);
        if (threadIdx.x == owner) total = merged;
      }
    }
    if (row < table.row_count) visit(static_cast<int32_t>(row), total);
  }
}

}  // namespace gradops::cuda
