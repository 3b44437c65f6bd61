// What a step on a GPU gets: tables, workspace and settings as plain structs. No CUDA and no torch header, so that
// the host path, the kernels and the tests share them.
//
// A row (one parameter) is cut into pieces of 512 elements, one for a warp; 16 pieces of a row make a chunk. A block
// takes a run of chunks and deals their pieces to its warps in turn. Pieces are small, so that tiny tensors fill every
// warp and little is lost where parking ends; chunks keep short what every block merges after the grid barrier.
#pragma once

#include <cstdint>

#include "host/step_scalars.h"
#include "math/agc.h"
#include "math/ema.h"
#include "math/loss_scale.h"
#include "math/relative_step.h"
#include "math/spike_guard.h"
#include "math/update.h"

namespace gradops::cuda {

// The shape of a block is the same everywhere, since it is part of the order of additions. Few threads with many
// registers: what a thread needs besides its parked gradients is then paid for fewer times.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPiece = 512;
constexpr int kPiecesPerChunk = 16;

// A tensor in device memory. A layout is a device array: the number of dimensions, then size and stride (in elements)
// of each, outermost first.
using View = ViewOf<int64_t>;

struct TensorRow {
  View views[kSlots];  // the gradient's data comes with each step
  float* step = nullptr;
  float* scalar = nullptr;  // of rules that have one
  int64_t numel = 0;
  int32_t group = 0;
  int32_t first_chunk = 0;  // of the row's chunks, one run in the table
  int32_t chunks = 0;

  View& operator[](Slot slot) { return views[slot]; }
  const View& operator[](Slot slot) const { return views[slot]; }
  bool operator==(const TensorRow&) const = default;
};

struct alignas(8) Piece {
  int32_t row;
  int32_t index;  // within the row: elements [index * kPiece, ...)

  bool operator==(const Piece&) const = default;
};

// Device arrays, written when the plan is linked. They hold every row, with a gradient or not: what has been gathered
// for a chunk keeps its place.
struct WorkTable {
  const TensorRow* rows;
  const Piece* pieces;
  const int32_t* chunk_pieces;  // first piece of each chunk; chunk_count + 1 entries
  const int32_t* block_chunks;  // first chunk of each block; one entry more than blocks
  int32_t row_count;
  int32_t chunk_count;
  bool compensated;  // whether any row has a compensation
  bool averaged;     // whether any row has an average
};

// A row's units. What a piece holds of a run is a segment; segment s of the row is the one in piece p of run s - p.
struct RowUnits {
  int64_t run = 1;
  int64_t count = 0;          // 0 for a row that is not clipped by units
  int64_t repeats = 0;        // runs of a unit: run i is of unit i % count
  int64_t pieces_of_run = 0;  // at most
  int64_t first_segment = 0;  // in Workspace::unit_segments
  int64_t first_unit = 0;     // in Workspace::unit_coefs
  int64_t lanes = 1;          // that merge a unit's segments: a power of two, at most 32

  bool operator==(const RowUnits&) const = default;
};

// How many segments a lane merges before others help it.
constexpr int kSegmentsOfLane = 4;

// The units that a warp merges at a time: [index * 32 / lanes, ...) of a row.
using UnitGroup = Piece;

// Device arrays; null where gradients are not clipped by units.
struct UnitTable {
  const RowUnits* rows = nullptr;
  const UnitGroup* groups = nullptr;
  int32_t group_count = 0;
};

// Sums of squares of a segment, each sum * scale^2.
struct alignas(16) UnitSquares {
  float grad;  // of clamped values
  float grad_power_scale;
  float param;
  float param_power_scale;
};

// What adaptive gradient clipping hands from phase to phase.
struct UnitWork {
  UnitSquares* segments = nullptr;
  float* coefs = nullptr;            // one a unit
  int32_t* smallest_coef = nullptr;  // its bits: numbers that are not negative have the order of these
};

struct GroupRule {
  HyperParams hyper;
  const void* lr = nullptr;  // a device scalar that replaces hyper.lr, or null
  bool lr_is_double = false;

  bool operator==(const GroupRule&) const = default;
};

// What the step got in device scalars, kept from before anything of it is written.
struct alignas(16) StepInputs {
  float loss_scale;
  float inv_scale;
  int32_t found_inf;
  SpikeGuardState guard;
};

// Device memory that kernels hand from phase to phase, each array aligned to 16 bytes. All of it may be left as it is
// between steps; `param_sums` must be, since it is what the update before this one gathered.
struct Workspace {
  ChunkStats* piece_stats;  // one a piece
  GradStats* grad_sums;     // one a chunk
  GradStats* param_sums;    // one a chunk; sums of squares of the stored parameters
  ChunkStats* piece_moves;  // one a piece, as moved_sums only where updates are tracked
  GradStats* moved_sums;    // one a chunk; sums of squares of what the update added to the stored parameters
  double* row_norms;        // of the stored parameters, likewise, and where rows are planned by their gradients
  RowRule* row_rules;
  float* ema_weights;  // one a row, where there are averages; see ema_weight
  StepInputs* inputs;
};

// The live buffers behind `optimizer.stats`. Where gradients are measured and nothing is updated, `counters` and those
// from `capped` on are null.
struct StatsBuffers {
  float* scalars;     // see StepScalar
  int64_t* counters;  // see StepCounter
  float* norms;
  float* abs_max;
  int64_t* nonfinite;
  bool* capped;
  float* update_ratio;
  float* param_rms;
};

struct StepPolicies {
  double max_norm = INFINITY;
  double norm_type = 2.0;
  float clip_value = INFINITY;
  RelativeStepPolicy relative_step;
  LossScalePolicy loss_scale;
  SpikeGuardPolicy guard;
  bool moves_loss_scale = false;
  bool guards = false;
  bool track_updates = false;
  bool gathers_squares = false;  // of stored parameters, for the next step to compare with, or to track updates
  EmaPolicy ema = {};
  double agc_ratio = INFINITY;  // the largest norm of a unit's gradient, relative to its weights'
};

struct StepArgs {
  WorkTable table;
  Workspace work;
  StatsBuffers stats;
  StepPolicies policies;
  UnitTable units;
  UnitWork unit_work;
  const float* loss_scale = nullptr;     // what the loss was multiplied by; null for 1
  const float* clip_coef = nullptr;      // what an update without statistics multiplies by; null for 1
  const float* found_inf = nullptr;      // not 0 if somebody saw an inf or NaN before; may be null
  bool grads_scaled = false;             // whether the gradients still are
  const void* const* grads = nullptr;    // one a row, null where there is none; null: they come as kernel parameters
  const GroupRule* groups = nullptr;     // likewise, one a param group
  int32_t shared_slots = 0;              // how many pieces a warp parks in shared memory
  const double* grad_factors = nullptr;  // of an update without statistics, one a row, where the rule needs norms

  GRADOPS_HD bool caps() const { return !std::isinf(policies.relative_step.cap); }
  // What few steps ask for and what takes registers has kernels of its own.
  bool has_extras() const { return policies.track_updates || table.compensated || table.averaged; }
};

// What travels as kernel parameters, so that a steady step copies nothing. An empty gradient needs an address, too: any
// but null.
template <int kGrads, int kGroups>
struct InlineArgs {
  static constexpr int kMaxGrads = kGrads;
  static constexpr int kMaxGroups = kGroups;
  StepArgs step;
  const void* grads[kGrads];
  GroupRule groups[kGroups];
};

// CUDA takes 4 KB of parameters on every device, and 32,764 bytes from 12.1 and sm_70 on.
constexpr int64_t kSmallParams = 4096;
constexpr int64_t kLargeParams = 32764;
constexpr int kSmallGroups = 8;
constexpr int kLargeGroups = 64;

constexpr int grads_that_fit(int64_t bytes, int groups) {
  return static_cast<int>((bytes - int64_t{sizeof(StepArgs)} - groups * int64_t{sizeof(GroupRule)}) / sizeof(void*));
}
using SmallArgs = InlineArgs<grads_that_fit(kSmallParams, kSmallGroups), kSmallGroups>;
using LargeArgs = InlineArgs<grads_that_fit(kLargeParams, kLargeGroups), kLargeGroups>;
static_assert(sizeof(SmallArgs) <= kSmallParams && sizeof(LargeArgs) <= kLargeParams);

}  // namespace gradops::cuda
