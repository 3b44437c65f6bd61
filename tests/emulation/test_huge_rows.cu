// What test_huge_rows.py calls.
#include "emulated_plan.h"

extern "C" {

// Leaves of a plan's only row these pieces, at most a chunk of them, so that a step touches no others.
void plan_keep_pieces(Plan* plan, const int64_t* indices, int64_t count) {
  for (int64_t i = 0; i < count; ++i) plan->pieces.data()[i] = {0, static_cast<int32_t>(indices[i])};
  plan->table_host.chunk_pieces = {0, static_cast<int32_t>(count)};
  std::copy_n(plan->table_host.chunk_pieces.data(), 2, plan->chunk_pieces.data());
  const std::vector<int32_t> shares = even_shares(plan->table_host.chunk_pieces, plan->form.blocks);
  std::copy(shares.begin(), shares.end(), plan->block_chunks.data());
  plan->rows.data()[0].chunks = 1;
}

}  // extern "C"
