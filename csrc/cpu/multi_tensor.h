// Many tensors, cut into chunks: the only place that knows how tensors become chunks and chunks become threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/agc.h"
#include "cpu/kernels.h"
#include "cpu/tensor_view.h"

namespace gradops::cpu {

struct TensorRow {
  int64_t numel = 0;
  TensorView views[kSlots];

  TensorView& operator[](Slot slot) { return views[slot]; }
  const TensorView& operator[](Slot slot) const { return views[slot]; }
};

struct Chunk {
  int32_t row;
  int32_t n;
  int64_t begin;
};

// The chunks of some of the rows, in the order of the rows.
class ChunkTable {
 public:
  void clear();
  void add_row(int32_t row, int64_t numel);

  std::span<const Chunk> chunks() const { return chunks_; }

  // The first chunk of the `part`-th of `parts` runs of chunks that hold about the same number of elements.
  int64_t bound(int64_t part, int64_t parts) const;

  // Calls visit(row, [first chunk, last chunk)) for every row that has chunks.
  template <class Visit>
  void for_each_row(const Visit& visit) const {
    for (size_t first = 0, last = 0; first < chunks_.size(); first = last) {
      while (last < chunks_.size() && chunks_[last].row == chunks_[first].row) ++last;
      visit(chunks_[first].row, first, last);
    }
  }

  int64_t elements() const { return elements_; }
  int64_t cost() const { return cost_.empty() ? 0 : cost_.back(); }

 private:
  std::vector<Chunk> chunks_;
  int64_t elements_ = 0;
  std::vector<int64_t> cost_;  // of all chunks up to and including this one, in elements
};

// Statistics of each chunk of the gradients or of the parameters.
void chunk_stats(const ChunkTable& table, std::span<const TensorRow> rows, Slot which, const Unscaling& unscaling,
                 const Norm& norm, std::span<ChunkStats> stats);

// The units of every row, and where each chunk's pieces of them are.
struct UnitPieces {
  std::span<const Units> units;    // one a row
  std::span<const int64_t> first;  // one a chunk: its first piece
  std::span<UnitSquares> squares;  // one a piece
};

// The gradients' statistics, and in the same pass the units' sums, for which the parameters are read.
void chunk_and_unit_stats(const ChunkTable& table, std::span<const TensorRow> rows, const Unscaling& unscaling,
                          const Norm& norm, std::span<ChunkStats> stats, const UnitPieces& pieces);

// How one parameter is updated in this step.
struct RowUpdate {
  RowRule rule;
  Units units = {};
  const float* unit_coefs = nullptr;  // one a unit, where the gradient is clipped by units
  float ema_weight = 0.0f;            // of what is stored in its average; 0 leaves that
};

// What an update gathers of each chunk; nothing where a span is empty. Both are of stored values and sums of squares.
struct UpdateStats {
  std::span<ChunkStats> params;  // the same function of the same bits as chunk_stats of the parameters
  std::span<ChunkStats> moved;   // of the parameters' changes
};

// Updates every chunk, each with what `update_chunk` does to it.
void update(const ChunkTable& table, std::span<const TensorRow> rows, UpdateChunk update_chunk,
            std::span<const RowUpdate> updates, const StepDecision& decision, const UpdateStats& stats);

// grad * coef, in place.
void scale_grads(const ChunkTable& table, std::span<const TensorRow> rows, float coef);

}  // namespace gradops::cpu
