// A table of rows and its workspace in host memory, and a step's settings as Python's one_pass.py gives them.
#pragma once

#include <cstdlib>
#include <memory>

#include "cuda/launch.h"
#include "cuda/unit_table.h"
#include "cuda/work_table.h"
#include "emulator.h"
#include "host/update_rules.h"

using namespace gradops;
using namespace gradops::cuda;

extern "C" {

struct ViewSpec {
  void* data;
  const int64_t* layout;
  int64_t dtype;
};

struct RowSpec {
  ViewSpec views[kSlots];
  float* step;
  float* scalar;
  int64_t numel;
  int64_t group;
  int64_t unit_run, unit_count;
};

struct GroupSpec {
  double lr, weight_decay, l1;
  double own[kMaxHyper];
  int64_t decoupled, maximize;
  const void* lr_tensor;
  int64_t lr_is_double;
};

struct StepSpec {
  double max_norm, norm_type, clip_value;
  double cap, floor, agc_ratio;
  int64_t warmup_steps;
  int64_t moves_loss_scale, track_updates;
  double growth_factor, backoff_factor;
  int64_t growth_interval;
  double min_scale, max_scale;
  double ratio, z_score, lr_cut, lr_growth, min_lr_factor;
  int64_t guards, skips, history, guard_warmup_steps;
  const float* loss_scale;
  const float* found_inf;
  int64_t grads_scaled;
  int64_t inline_params;
  double ema[7];  // in the order of EmaPolicy
  StatsBuffers stats;
};

}  // extern "C"

namespace {

// Arrays of kernels are aligned to 16 bytes. Filled with what reads as NaN and as an absurd number.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count)
      : bytes_(count * sizeof(T)), data_(static_cast<T*>(std::aligned_alloc(64, (bytes_ + 64) / 64 * 64))) {
    std::memset(static_cast<void*>(data_.get()), 0xff, bytes_);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (bytes_ > 0) std::memcpy(static_cast<void*>(data_.get()), values.data(), bytes_);
  }
  T* data() const { return data_.get(); }
  void watch(const char* name, bool writable) const {
    if (bytes_ > 0) emu::watch(name, data_.get(), bytes_, sizeof(T) % 4 == 0 ? 4 : 1, writable);
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<T, Free> data_;
};

View view_of(const ViewSpec& spec) { return {spec.data, spec.layout, static_cast<Dtype>(spec.dtype)}; }

std::vector<TensorRow> rows_of(const RowSpec* specs, int64_t count) {
  std::vector<TensorRow> rows;
  for (const RowSpec* spec = specs; spec != specs + count; ++spec) {
    TensorRow row;
    std::transform(spec->views, spec->views + kSlots, row.views, view_of);
    row.step = spec->step;
    row.scalar = spec->scalar;
    row.numel = spec->numel;
    row.group = static_cast<int32_t>(spec->group);
    rows.push_back(row);
  }
  return rows;
}

std::vector<Units> units_of(const RowSpec* specs, int64_t count) {
  std::vector<Units> units;
  for (const RowSpec* spec = specs; spec != specs + count; ++spec) units.push_back({spec->unit_run, spec->unit_count});
  return units;
}

GroupRule group_of(const UpdateRuleInfo& rule, const GroupSpec& spec) {
  GroupRule group;
  group.hyper.lr = spec.lr;
  group.hyper.weight_decay = spec.weight_decay;
  group.hyper.l1 = spec.l1;
  std::copy_n(spec.own, kMaxHyper, group.hyper.own);
  group.hyper.decay_kind = spec.decoupled ? WeightDecay::kDecoupled : WeightDecay::kL2;
  group.hyper.variant = rule.variant(group.hyper);
  group.hyper.maximize = spec.maximize != 0;
  group.lr = spec.lr_tensor;
  group.lr_is_double = spec.lr_is_double != 0;
  return group;
}

struct Plan {
  const UpdateRuleInfo& rule;
  LaunchForm form;
  std::vector<TensorRow> rows_host;
  WorkTableHost table_host;
  DeviceArray<TensorRow> rows;
  DeviceArray<Piece> pieces;
  DeviceArray<int32_t> chunk_pieces, block_chunks;
  DeviceArray<ChunkStats> piece_stats, piece_moves;
  DeviceArray<GradStats> grad_sums, param_sums, moved_sums;
  DeviceArray<double> row_norms;
  DeviceArray<RowRule> row_rules;
  DeviceArray<float> ema_weights;
  DeviceArray<StepInputs> inputs;
  UnitTableHost units_host;
  DeviceArray<RowUnits> units;
  DeviceArray<UnitGroup> unit_groups;
  DeviceArray<UnitSquares> segments;
  DeviceArray<float> unit_coefs;
  DeviceArray<int32_t> smallest_coef;

  Plan(const char* name, std::vector<TensorRow> given, const std::vector<Units>& units_of_rows, LaunchForm launch_form)
      : rule(update_rule(name)),
        form(std::move(launch_form)),
        rows_host(std::move(given)),
        table_host(cut(rows_host)),
        rows(rows_host),
        pieces(table_host.pieces),
        chunk_pieces(table_host.chunk_pieces),
        block_chunks(even_shares(table_host.chunk_pieces, form.blocks)),
        piece_stats(table_host.pieces.size()),
        piece_moves(table_host.pieces.size()),
        grad_sums(table_host.chunk_count()),
        param_sums(table_host.chunk_count()),
        moved_sums(table_host.chunk_count()),
        row_norms(rows_host.size()),
        row_rules(rows_host.size()),
        ema_weights(rows_host.size()),
        inputs(1),
        units_host(cut_units(rows_host, units_of_rows)),
        units(units_host.rows),
        unit_groups(units_host.groups),
        segments(units_host.segments),
        unit_coefs(units_host.units),
        smallest_coef(1) {}

  void watch() const {
    rows.watch("table", false);
    pieces.watch("pieces", false);
    chunk_pieces.watch("table", false);
    block_chunks.watch("table", false);
    piece_stats.watch("piece_stats", true);
    grad_sums.watch("grad_sums", true);
    param_sums.watch("param_sums", true);
    piece_moves.watch("piece_moves", true);
    moved_sums.watch("moved_sums", true);
    row_norms.watch("row_norms", true);
    row_rules.watch("row_rules", true);
    ema_weights.watch("ema_weights", true);
    inputs.watch("inputs", true);
    units.watch("table", false);
    unit_groups.watch("table", false);
    segments.watch("segments", true);
    unit_coefs.watch("unit_coefs", true);
    smallest_coef.watch("smallest_coef", true);
  }

  StepArgs args() const {
    StepArgs args;
    const auto has = [&](Slot slot) {
      return std::any_of(rows_host.begin(), rows_host.end(),
                         [&](const auto& row) { return row[slot].data != nullptr; });
    };
    args.table = {rows.data(),
                  pieces.data(),
                  chunk_pieces.data(),
                  block_chunks.data(),
                  static_cast<int32_t>(rows_host.size()),
                  table_host.chunk_count(),
                  has(kCompensation),
                  has(kEma)};
    args.work = {piece_stats.data(), grad_sums.data(), param_sums.data(),  piece_moves.data(), moved_sums.data(),
                 row_norms.data(),   row_rules.data(), ema_weights.data(), inputs.data()};
    args.units = {units.data(), unit_groups.data(), static_cast<int32_t>(units_host.groups.size())};
    args.unit_work = {segments.data(), unit_coefs.data(), smallest_coef.data()};
    return args;
  }
};

StepPolicies policies_of(const StepSpec& spec) {
  StepPolicies policies;
  policies.max_norm = spec.max_norm;
  policies.norm_type = spec.norm_type;
  policies.clip_value = static_cast<float>(spec.clip_value);
  policies.relative_step = {spec.cap, spec.floor, spec.warmup_steps};
  policies.loss_scale = {spec.growth_factor, spec.backoff_factor, spec.growth_interval, spec.min_scale, spec.max_scale};
  policies.moves_loss_scale = spec.moves_loss_scale != 0;
  policies.guards = spec.guards != 0;
  policies.guard = {.ratio = spec.ratio,
                    .z_score = spec.z_score,
                    .skips = spec.skips != 0,
                    .lr_cut = spec.lr_cut,
                    .lr_growth = spec.lr_growth,
                    .min_lr_factor = spec.min_lr_factor,
                    .history = spec.history,
                    .warmup_steps = spec.guard_warmup_steps};
  policies.track_updates = spec.track_updates != 0;
  policies.agc_ratio = spec.agc_ratio;
  const double (&ema)[7] = spec.ema;
  policies.ema = {ema[0], ema[1], ema[2], ema[3], ema[4], ema[5], ema[6]};
  return policies;
}

}  // namespace
