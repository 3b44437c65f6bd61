// How rows become pieces, chunks and shares of blocks, once for each set of parameters.
#pragma once

#include <span>
#include <vector>

#include "cuda/step_args.h"

namespace gradops::cuda {

// What WorkTable points to, before it is copied to the device; even_shares has the rest.
struct WorkTableHost {
  std::vector<Piece> pieces;
  std::vector<int32_t> chunk_pieces{0};

  int32_t chunk_count() const { return static_cast<int32_t>(chunk_pieces.size()) - 1; }
};

// The bounds of `blocks` runs of chunks of which the longest has as few pieces as can be: the step is as slow as its
// slowest block, and what a block can park is counted in pieces.
std::vector<int32_t> even_shares(std::span<const int32_t> chunk_pieces, int32_t blocks);

// Cuts the rows; writes first_chunk and chunks of each. Call even_shares when the number of blocks is known.
WorkTableHost cut(std::span<TensorRow> rows);

}  // namespace gradops::cuda
