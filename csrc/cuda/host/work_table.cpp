#include "cuda/host/work_table.h"

#include <algorithm>

namespace gradops::cuda {

std::vector<int32_t> even_shares(std::span<const int32_t> chunk_pieces, int32_t blocks) {
  const int32_t chunks = static_cast<int32_t>(chunk_pieces.size()) - 1;
  const auto fill = [&](int32_t limit) {
    std::vector<int32_t> bounds{0};
    while (static_cast<int32_t>(bounds.size()) <= blocks) {
      const auto* end = std::upper_bound(chunk_pieces.data() + bounds.back(), chunk_pieces.data() + chunks + 1,
                                         chunk_pieces[bounds.back()] + limit);
      bounds.push_back(static_cast<int32_t>(end - chunk_pieces.data()) - 1);
    }
    return bounds;
  };
  int32_t low = chunk_pieces[chunks] / blocks, high = chunk_pieces[chunks];
  while (low < high) {
    const int32_t limit = low + (high - low) / 2;
    if (fill(limit).back() == chunks) {
      high = limit;
    } else {
      low = limit + 1;
    }
  }
  return fill(low);
}

WorkTableHost cut(std::span<TensorRow> rows) {
  WorkTableHost table;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].first_chunk = table.chunk_count();
    const int64_t pieces = (rows[i].numel + kPiece - 1) / kPiece;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      table.pieces.push_back({static_cast<int32_t>(i), static_cast<int32_t>(piece)});
      if (piece % kPiecesPerChunk == kPiecesPerChunk - 1 || piece == pieces - 1) {
        table.chunk_pieces.push_back(static_cast<int32_t>(table.pieces.size()));
      }
    }
    rows[i].chunks = table.chunk_count() - rows[i].first_chunk;
  }
  return table;
}

}  // namespace gradops::cuda
