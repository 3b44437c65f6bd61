#include "cpu/multi_tensor.h"

#include <ATen/Parallel.h>

#include <algorithm>

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

// Calls run(chunk index, scratch) for every chunk, on torch's threads, each taking one run of chunks. `reverse` walks
// each run backwards: what the last phase read at its end is still in the cache.
template <class Run>
void for_each_chunk(const ChunkTable& table, bool reverse, const Run& run) {
  const int64_t threads = std::clamp<int64_t>(table.cost() / kGrain, 1, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t first_thread, int64_t last_thread) {
    Scratch& scratch = thread_scratch();
    const int64_t first = table.bound(first_thread, threads);
    const int64_t last = table.bound(last_thread, threads);
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
  const float* values = load(view, chunk.begin, chunk.n, scratch.grad);
  return grad_stats_chunk(values, chunk.n, unscaling, norm.type, static_cast<float>(norm.p));
}

// What rounding took off `values`, which are those of the parameter before it was stored, in the parameter's place.
void store_compensation(const TensorRow& row, const Chunk& chunk, const float* values, Scratch& copies) {
  const auto [row_index, n, begin] = chunk;
  copy_in(row[kParam], begin, n, copies.compensation);
  left_by_rounding_chunk(values, copies.compensation, n);
  copy_out(row[kCompensation], begin, n, copies.compensation);
}

// Averages what has been stored of the chunk.
void average(const TensorRow& row, const Chunk& chunk, float weight, Scratch& copies) {
  const auto [row_index, n, begin] = chunk;
  float* averages = load(row[kEma], begin, n, copies.average);
  average_chunk(load(row[kParam], begin, n, copies.param), averages, n, weight);
  store(row[kEma], begin, n, averages);
}

// What `update_chunk` makes of a chunk, from its tensors to its tensors.
struct ChunkUpdate {
  UpdateChunk update_chunk;
  const StepDecision& decision;

  void operator()(const TensorRow& row, const Chunk& chunk, const RowUpdate& update, Scratch& copies,
                  float* moved = nullptr) const {
    const auto [row_index, n, begin] = chunk;
    ChunkValues values;
    values.moved = moved;
    values.param = load(row[kParam], begin, n, copies.param);
    const bool compensated = row[kCompensation].data != nullptr;
    if (compensated) add_chunk(load(row[kCompensation], begin, n, copies.compensation), values.param, n);
    values.grad = load(row[kGrad], begin, n, copies.grad);
    for (int i = 0; i < kMaxMoments; ++i) {
      const TensorView& moment = row[moment_slot(i)];
      if (moment.data != nullptr) values.moments[i] = load(moment, begin, n, copies.moments[i]);
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
    if (compensated) store_compensation(row, chunk, values.param, copies);
    for (int i = 0; i < kMaxMoments; ++i) {
      if (values.moments[i] != nullptr) store(row[moment_slot(i)], begin, n, values.moments[i]);
    }
    if (update.ema_weight != 0.0f) average(row, chunk, update.ema_weight, copies);
  }
};

// The same, and the statistics of what the stored parameter was moved by.
ChunkStats update_and_track(const ChunkUpdate& run, const TensorRow& row, const Chunk& chunk, const RowUpdate& update,
                            Scratch& copies) {
  const TensorView& param = row[kParam];
  if (param.dtype == Dtype::kFloat32) {
    run(row, chunk, update, copies, copies.moved);
  } else {
    std::copy_n(load(param, chunk.begin, chunk.n, copies.param), chunk.n, copies.moved);
    run(row, chunk, update, copies);
    subtract_chunk(load(param, chunk.begin, chunk.n, copies.param), copies.moved, chunk.n);
  }
  return grad_stats_chunk(copies.moved, chunk.n, Unscaling{}, NormType::kL2, 2.0f);
}

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
  const int64_t count = static_cast<int64_t>(table.chunks().size());
  for_each_chunk(table, false, [&](int64_t i, Scratch& scratch) {
    const Chunk& chunk = table.chunks()[i];
    if (const int64_t next = i + kPrefetchChunks; count > kManyChunks && next < count) {
      prefetch(rows[table.chunks()[next].row][which], table.chunks()[next]);
    }
    stats[i] = stats_of(rows[chunk.row][which], chunk, unscaling, norm, scratch);
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
  const ChunkUpdate run{update_chunk, decision};
  const int64_t count = static_cast<int64_t>(table.chunks().size());
  const bool many = count > kManyChunks;
  for_each_chunk(table, true, [&](int64_t i, Scratch& scratch) {
    const Chunk& chunk = table.chunks()[i];
    if (const int64_t ahead = i + kPrefetchChunks; many && ahead < count) {
      const Chunk& next = table.chunks()[ahead];
      const TensorRow& row = rows[next.row];
      for (const Slot slot : {kParam, kGrad, kMoment0, moment_slot(1), kEma}) prefetch(row[slot], next);
    }
    const TensorRow& row = rows[chunk.row];
    if (stats.moved.empty()) {
      for_each_piece(chunk, [&](const Chunk& piece) { run(row, piece, updates[chunk.row], scratch); });
    } else {
      stats.moved[i] = update_and_track(run, row, chunk, updates[chunk.row], scratch);
    }
    if (!stats.params.empty()) stats.params[i] = stats_of(row[kParam], chunk, Unscaling{}, Norm{}, scratch);
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
