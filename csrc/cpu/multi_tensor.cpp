#include "cpu/multi_tensor.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>

#include "cpu/stat_lanes.h"

namespace gradops::cpu {
namespace {

// What a chunk costs besides its elements, measured in elements.
constexpr int64_t kChunkOverhead = 128;

// Waking a thread takes some microseconds: the time of about this many elements.
constexpr int64_t kGrain = 64 * 1024;

// Many small tensors: what comes next is fetched this many chunks ahead.
constexpr int64_t kPrefetchChunks = 3;
constexpr int64_t kManyChunks = 1000;

// Elements that are updated at a time. Their moments too stay in a core's first cache, where a copy, a rounding or an
// average finds them again.
constexpr int32_t kPiece = 2048;

// Copies of a chunk's tensors, for those that are not contiguous float32.
struct Scratch {
  alignas(64) float param[kChunk];
  alignas(64) float grad[kChunk];
  alignas(64) float moments[kMaxMoments][kChunk];
  alignas(64) float moved[kChunk];
  alignas(64) float compensation[kChunk];
  alignas(64) float average[kChunk];
  StatLanes param_lanes, moved_lanes;
};

// Behind a call, so that the thread's own address is looked up once and not at every use.
[[gnu::noinline]] Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

// Starts to fetch the beginning of a chunk, which the hardware cannot foresee where tensors are small.
void prefetch(const TensorView& view, const Chunk& chunk) {
  if (view.data == nullptr) return;
  const char* start = static_cast<const char*>(view.data) + chunk.begin * (view.dtype == Dtype::kFloat32 ? 4 : 2);
  for (int line = 0; line < 4; ++line) __builtin_prefetch(start + 64 * line);
}

// Chunks that are walked forwards when their run is walked backwards, so that streams of memory are long enough for the
// hardware to foresee them: 4 MiB of each tensor.
constexpr int64_t kStretch = 128;

// The `i`-th of `count` chunks, walked backwards stretch by stretch.
int64_t backwards(int64_t i, int64_t count) {
  const int64_t end = count - i / kStretch * kStretch;
  return std::max<int64_t>(end - kStretch, 0) + i % kStretch;
}

// Calls run(first chunk, last chunk, scratch) on torch's threads, each taking one run of chunks.
template <class Run>
void for_each_run(const ChunkTable& table, const Run& run) {
  const int64_t threads = std::clamp<int64_t>(table.cost() / kGrain, 1, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t first_thread, int64_t last_thread) {
    run(table.bound(first_thread, threads), table.bound(last_thread, threads), thread_scratch());
  });
}

// Calls run(chunk index, scratch) for every chunk. `reverse` walks each thread's run backwards: what the last phase
// read at its end is still in the cache.
template <class Run>
void for_each_chunk(const ChunkTable& table, bool reverse, const Run& run) {
  for_each_run(table, [&](int64_t first, int64_t last, Scratch& scratch) {
    const int64_t count = last - first;
    for (int64_t i = 0; i < count; ++i) run(first + (reverse ? backwards(i, count) : i), scratch);
  });
}

// Calls run(piece) for the pieces of a chunk, in order.
template <class Run>
void for_each_piece(const Chunk& chunk, const Run& run) {
  for (int32_t begin = 0; begin < chunk.n; begin += kPiece) {
    run(Chunk{chunk.row, std::min<int32_t>(kPiece, chunk.n - begin), chunk.begin + begin});
  }
}

ChunkStats stats_of(const TensorView& view, const Chunk& chunk, const Unscaling& unscaling, const Norm& norm,
                    Scratch& scratch) {
  return stats_of_chunk(load(view, chunk.begin, chunk.n, scratch.grad), chunk.n, unscaling, norm);
}

// The next chunks, where they can be read side by side: whole, and as they lie in memory.
std::optional<ChunksOfValues> whole_chunks(std::span<const Chunk> next, std::span<const TensorRow> rows, Slot which) {
  ChunksOfValues whole;
  if (next.size() < whole.size()) return std::nullopt;
  for (size_t i = 0; i < whole.size(); ++i) {
    const TensorView& view = rows[next[i].row][which];
    if (next[i].n != kChunk || !is_contiguous_float32(view)) return std::nullopt;
    whole[i] = static_cast<const float*>(view.data) + next[i].begin;
  }
  return whole;
}

// What rounding took off `values`, which are those of the parameter before it was stored, in the parameter's place.
void store_compensation(const TensorRow& row, const Chunk& chunk, const float* values, Scratch& copies) {
  const auto [row_index, n, begin] = chunk;
  copy_in(row[kParam], begin, n, copies.compensation);
  left_by_rounding_chunk(values, copies.compensation, n);
  copy_out(row[kCompensation], begin, n, copies.compensation);
}

// The averages, moved to what has been stored of the chunk.
float* average_stored(const TensorRow& row, const Chunk& chunk, float weight, Scratch& copies) {
  const auto [row_index, n, begin] = chunk;
  float* averages = load(row[kEma], begin, n, copies.average);
  average_chunk(load(row[kParam], begin, n, copies.param), averages, n, weight);
  return averages;
}

// Whether what is computed of a parameter is what is stored.
bool is_exact(const TensorRow& row) { return row[kParam].dtype == Dtype::kFloat32; }

// What `update_chunk` makes of a piece, from its tensors to its tensors.
struct PieceUpdate {
  UpdateChunk update_chunk;
  const StepDecision& decision;

  void operator()(const TensorRow& row, const Chunk& piece, const RowUpdate& update, Scratch& copies,
                  const UpdateExtras& extras) const {
    const auto [row_index, n, begin] = piece;
    ChunkValues values;
    values.param = load(row[kParam], begin, n, copies.param);
    const bool compensated = row[kCompensation].data != nullptr;
    if (compensated) add_chunk(load(row[kCompensation], begin, n, copies.compensation), values.param, n);
    values.grad = load(row[kGrad], begin, n, copies.grad);
    for (int i = 0; i < kMaxMoments; ++i) {
      const TensorView& moment = row[moment_slot(i)];
      if (moment.data != nullptr) values.moments[i] = load(moment, begin, n, copies.moments[i]);
    }
    const bool averages = update.ema_weight != 0.0f;
    if (is_exact(row)) {
      values.extras = extras;
      values.extras.ema_weight = update.ema_weight;
      if (averages) values.extras.averages = load(row[kEma], begin, n, copies.average);
    }

    if (update.unit_coefs == nullptr) {
      update_chunk(values, n, decision, update.rule);
    } else {
      clip_units_chunk(values.grad, begin, n, update.units, update.unit_coefs, decision, copies.grad);
      values.grad = copies.grad;
      update_chunk(values, n, StepDecision{}, update.rule);
    }

    store(row[kParam], begin, n, values.param);
    if (row[kRounded].data != nullptr) copy_out(row[kRounded], begin, n, values.param);
    if (compensated) store_compensation(row, piece, values.param, copies);
    for (int i = 0; i < kMaxMoments; ++i) {
      if (values.moments[i] != nullptr) store(row[moment_slot(i)], begin, n, values.moments[i]);
    }
    if (!averages) return;
    const bool averaged = values.extras.averages != nullptr;
    store(row[kEma], begin, n,
          averaged ? values.extras.averages : average_stored(row, piece, update.ema_weight, copies));
  }
};

}  // namespace

void ChunkTable::clear() {
  chunks_.clear();
  elements_ = 0;
  cost_.clear();
}

void ChunkTable::add_row(int32_t row, int64_t numel) {
  elements_ += numel;
  for (int64_t begin = 0; begin < numel; begin += kChunk) {
    const int64_t n = std::min(kChunk, numel - begin);
    chunks_.push_back({row, static_cast<int32_t>(n), begin});
    cost_.push_back(cost() + n + kChunkOverhead);
  }
}

int64_t ChunkTable::bound(int64_t part, int64_t parts) const {
  if (part == parts) return static_cast<int64_t>(cost_.size());
  return std::upper_bound(cost_.begin(), cost_.end(), cost() * part / parts) - cost_.begin();
}

void chunk_stats(const ChunkTable& table, std::span<const TensorRow> rows, Slot which, const Unscaling& unscaling,
                 const Norm& norm, std::span<ChunkStats> stats) {
  const std::span<const Chunk> chunks = table.chunks();
  for_each_run(table, [&](int64_t first, int64_t last, Scratch& scratch) {
    for (int64_t i = first; i < last;) {
      if (const auto whole = whole_chunks(chunks.subspan(i, last - i), rows, which)) {
        stats_side_by_side(*whole, unscaling, norm, &stats[i]);
        i += kSideBySide;
        continue;
      }
      if (const size_t next = i + kPrefetchChunks; chunks.size() > kManyChunks && next < chunks.size()) {
        prefetch(rows[chunks[next].row][which], chunks[next]);
      }
      stats[i] = stats_of(rows[chunks[i].row][which], chunks[i], unscaling, norm, scratch);
      ++i;
    }
  });
}

void chunk_and_unit_stats(const ChunkTable& table, std::span<const TensorRow> rows, const Unscaling& unscaling,
                          const Norm& norm, std::span<ChunkStats> stats, const UnitPieces& pieces) {
  for_each_chunk(table, false, [&](int64_t i, Scratch& scratch) {
    const Chunk& chunk = table.chunks()[i];
    const TensorRow& row = rows[chunk.row];
    stats[i] = stats_of(row[kGrad], chunk, unscaling, norm, scratch);
    const Units& units = pieces.units[chunk.row];
    if (units.count == 0) return;
    const float* grad = load(row[kGrad], chunk.begin, chunk.n, scratch.grad);
    const float* param = load(row[kParam], chunk.begin, chunk.n, scratch.param);
    unit_squares_chunk(grad, param, chunk.begin, chunk.n, units, unscaling, pieces.squares.data() + pieces.first[i]);
  });
}

void update(const ChunkTable& table, std::span<const TensorRow> rows, UpdateChunk update_chunk,
            std::span<const RowUpdate> updates, const StepDecision& decision, const UpdateStats& stats) {
  const PieceUpdate run{update_chunk, decision};
  const int64_t count = static_cast<int64_t>(table.chunks().size());
  const bool many = count > kManyChunks, tracks = !stats.moved.empty(), measures = !stats.params.empty();
  for_each_chunk(table, true, [&](int64_t i, Scratch& scratch) {
    const Chunk& chunk = table.chunks()[i];
    if (const int64_t ahead = i + kPrefetchChunks; many && ahead < count) {
      const Chunk& next = table.chunks()[ahead];
      const TensorRow& row = rows[next.row];
      for (const Slot slot : {kParam, kGrad, kMoment0, moment_slot(1), kEma}) prefetch(row[slot], next);
    }
    const TensorRow& row = rows[chunk.row];
    const auto [row_index, n, begin] = chunk;
    const bool exact = is_exact(row);
    const bool gathers = exact && n == kChunk;  // a shorter one is sooner looked at as a whole
    UpdateExtras extras;
    if (gathers && measures) (extras.param_lanes = &scratch.param_lanes)->clear();
    if (gathers && tracks) (extras.moved_lanes = &scratch.moved_lanes)->clear();
    if (tracks && !exact) std::copy_n(load(row[kParam], begin, n, scratch.param), n, scratch.moved);
    for_each_piece(chunk, [&](const Chunk& piece) {
      if (tracks) extras.moved = scratch.moved + (piece.begin - begin);
      run(row, piece, updates[row_index], scratch, extras);
    });
    if (!tracks && !measures) return;
    const float* stored = load(row[kParam], begin, n, scratch.param);
    if (tracks && !exact) subtract_chunk(stored, scratch.moved, n);
    const auto gathered = [&](StatLanes& lanes, const float* values) {
      return gathers ? stats_of_lanes(lanes, values, n) : stats_of_chunk(values, n, Unscaling{}, Norm{});
    };
    if (tracks) stats.moved[i] = gathered(scratch.moved_lanes, scratch.moved);
    if (measures) stats.params[i] = gathered(scratch.param_lanes, stored);
  });
}

void scale_grads(const ChunkTable& table, std::span<const TensorRow> rows, float coef) {
  for_each_chunk(table, true, [&](int64_t i, Scratch& scratch) {
    const Chunk& chunk = table.chunks()[i];
    const TensorView& grad = rows[chunk.row][kGrad];
    float* values = load(grad, chunk.begin, chunk.n, scratch.grad);
    scale_chunk(values, chunk.n, coef);
    store(grad, chunk.begin, chunk.n, values);
  });
}

}  // namespace gradops::cpu
