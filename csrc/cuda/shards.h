// A step of which this process has parts of the rows: what it records of them for the other processes, and what it
// makes of the records of all.
//
// The kernels of a step read sums of chunks, of which a row has a run in the table. After the exchange they are given
// the whole rows' sums in place of these, with a table in which each row has one chunk; nothing else of them differs.
#pragma once

#include "cuda/launch.h"

namespace gradops::cuda {

// The lines of the exchange before the decision, as Python's gathering takes them: one column a row, and one more.
enum ShardLine : int32_t { kGradNorms, kAbsMax, kNonfinite, kParamNorms };
// The lines of the one after the update.
enum UpdateLine : int32_t { kMovedNorms, kNewNorms, kSmallestCoef, kUpdateLines };

constexpr double kTakesNoPart = -1.0;  // in the line of bits

// What was measured: where the rule or a cap compares, norms of parameters travel, too; where gradients are clipped by
// units, the norms of the rows that are one unit, of gradients and of parameters, in two lines more.
struct ShardLines {
  bool params = false;
  bool units = false;

  GRADOPS_HD int32_t unit_line() const { return params ? kParamNorms + 1 : kParamNorms; }
  GRADOPS_HD int32_t count() const { return unit_line() + (units ? 2 : 0); }
};

// Device arrays.
struct ShardWork {
  GradStats* grads = nullptr;            // one a row: of the whole rows, all processes' gradients together
  GradStats* params = nullptr;           // sums of squares, likewise
  const void** takes_part = nullptr;     // one a row: not null where some process has a gradient
  const uint8_t* is_one_unit = nullptr;  // one a row
  double* records = nullptr;             // of this process: (lines, rows + 1)
  const double* gathered = nullptr;      // the records of all: (processes, lines, rows + 1)
  const bool* counts = nullptr;          // (processes, rows): of replicas one counts; null where all do
  int32_t processes = 0;
  ShardLines lines;
};

// What this process has measured, into `work.records`. `call` has the process's own table, as in those that follow.
void record_rows(const LaunchForm& form, const StepCall& call, const ShardWork& work, Stream stream);

// Merges the records of all into `work.grads`, `work.params`, `work.takes_part`, `call.args.work.inputs->found_inf` and
// the sums of segments of rows that are one unit.
void merge_rows(const StepCall& call, const ShardWork& work, Stream stream);

// In place of the update where this process has no gradient at all: takes the others' decision, if there is one.
// `call` has the table of whole rows.
void decide_without_grads(const LaunchForm& form, const StepCall& call, const ShardWork& work, Stream stream);

// After the update: how far it has moved this process's parts, how large they are now, and the smallest factor of a
// unit, into `work.records`; where `any_grad` is false only what moves nothing.
void record_updates(const LaunchForm& form, const StepCall& call, const ShardWork& work, bool any_grad, Stream stream);

// Merges these records of all into the statistics. `call` has the table of whole rows.
void write_shared_updates(const StepCall& call, const ShardWork& work, Stream stream);

}  // namespace gradops::cuda
