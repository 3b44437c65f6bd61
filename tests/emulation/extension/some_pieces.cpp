// In place of csrc/cuda/host/work_table.cpp: of a parameter too large to be emulated a few pieces are stepped.
#include "cuda/host/work_table.h"
#define cut cut_whole
#include "cuda/host/work_table.cpp"
#undef cut

namespace gradops::cuda {
namespace {

std::vector<int64_t> kept;  // of the only row; none: all of all rows

}  // namespace

WorkTableHost cut(std::span<TensorRow> rows) {
  if (kept.empty()) return cut_whole(rows);
  WorkTableHost table;
  for (const int64_t piece : kept) table.pieces.push_back({0, static_cast<int32_t>(piece)});
  table.chunk_pieces.push_back(static_cast<int32_t>(kept.size()));
  rows[0].first_chunk = 0;
  rows[0].chunks = 1;
  return table;
}

}  // namespace gradops::cuda

#pragma GCC visibility push(default)
extern "C" {

// For tables that are made from now on; at most a chunk of them.
void emulated_pieces(const int64_t* pieces, int64_t count) { gradops::cuda::kept.assign(pieces, pieces + count); }
}
#pragma GCC visibility pop
