#include "cpu/step.h"

#include <ATen/record_function.h>

#include <algorithm>

#include "cpu/isa.h"
#include "math/update_stats.h"

namespace gradops {
namespace {

// Work below this many elements is over before another thread could use the interpreter.
constexpr int64_t kReleaseGil = 1 << 20;

SpikeGuardState guard_state(const StepCall& call) {
  if (!call.settings.guard.has_value()) return {};
  const float* scalars = call.buffers.scalars.const_data_ptr<float>();
  const int64_t* counters = call.buffers.counters.const_data_ptr<int64_t>();
  return {scalars[kLrFactor], scalars[kUsualNorm], scalars[kDeviation], counters[kNormsSeen]};
}

PowerSum sum_of(std::span<const ChunkStats> chunks) {
  PowerSum squares;
  for (const ChunkStats& chunk : chunks) squares.merge(chunk.power_sum, chunk.unit, 2.0);
  return squares;
}

}  // namespace

void CpuStep::cut_into_chunks(const StepCall& call) {
  if (!call.moved) return;
  table_.clear();
  for (const int64_t i : call.taking_part) table_.add_row(i, call.views[i].numel);
  grad_chunks_.resize(table_.chunks().size());
  row_stats_.resize(call.rows.size());
  updates_.resize(call.rows.size());
}

CpuStep::Outcome CpuStep::measure(const StepCall& call, const SpikeGuardState& history, float inv_scale,
                                  bool found_inf) {
  RECORD_USER_SCOPE("gradops.grad_stats");
  const StepSettings& settings = call.settings;
  const GradRule rule{inv_scale, static_cast<float>(settings.clip_value)};
  const cpu::Norm norm{norm_type_of(settings.norm_type), settings.norm_type};
  if (settings.agc) {
    units_.cut(call, table_);
    cpu::chunk_and_unit_stats(table_, call.views, rule, norm, grad_chunks_, units_.pieces());
  } else {
    cpu::chunk_stats(table_, call.views, kGrad, rule, norm, grad_chunks_);
  }
  std::fill(row_stats_.begin(), row_stats_.end(), GradStats());
  Outcome outcome;
  table_.for_each_row([&](int64_t row, size_t first, size_t last) {
    GradStats& stats = row_stats_[row];
    for (size_t i = first; i < last; ++i) stats.merge(grad_chunks_[i], norm.p);
    outcome.all.merge(stats, norm.p);
  });
  outcome.grad_norm = outcome.all.norm(norm.p, rule.clip_value);
  outcome.decision = decide(outcome.all, outcome.grad_norm, settings.max_grad_norm(), rule, found_inf);
  outcome.found_inf = outcome.decision.skip;
  if (settings.guard) outcome.guarded = guard_step(outcome.decision, outcome.grad_norm, history, *settings.guard);
  return outcome;
}

void CpuStep::measure_params(const StepCall& call) {
  cpu::ChunkTable unknown;
  for (const int64_t row : call.taking_part) {
    if (call.rows[row].squares_known()) continue;
    unknown.add_row(row, call.views[row].numel);
    call.rows[row].set_squares({});
  }
  if (unknown.chunks().empty()) return;
  RECORD_USER_SCOPE("gradops.param_stats");
  std::vector<ChunkStats> chunks(unknown.chunks().size());
  cpu::chunk_stats(unknown, call.views, kParam, GradRule{}, cpu::Norm{}, chunks);
  unknown.for_each_row([&](int64_t row, size_t first, size_t last) {
    call.rows[row].set_squares(sum_of(std::span(chunks).subspan(first, last - first)));
  });
}

void CpuStep::plan_updates(const StepCall& call, const StepDecision& decision, double lr_factor) {
  int64_t last_group = -1;
  double last_lr = 0.0;
  double last_step = 0.0;
  const cpu::RowUpdate* last = nullptr;
  for (const int64_t i : call.taking_part) {
    const ParamRow& row = call.rows[i];
    const HyperParams& hyper = call.groups[row.group()].hyper;
    const double step = static_cast<double>(*row.step()) + 1.0;
    const double group_lr = hyper.lr * lr_factor;
    double lr = group_lr;
    if (call.settings.caps()) {
      const int64_t numel = call.views[i].numel;
      const double rms = rms_of(row.squares().norm(2.0), numel);
      const double grad_rms = decision.clip_coef * rms_of(row_stats_[i].power.norm(2.0), numel);
      const double per_lr = rule_.scale_free ? 1.0 : rms_per_lr(hyper, rms, grad_rms);
      lr = capped_lr(group_lr, rms, step, call.settings.relative_step, per_lr);
    }
    capped_[i] = lr < group_lr;
    // Neighbours mostly share group, step and lr; two powers cost more than a tensor of 64 elements.
    if (last != nullptr && row.group() == last_group && lr == last_lr && step == last_step) {
      updates_[i] = *last;
    } else {
      updates_[i] = {rule_.row_rule(hyper, lr, step)};
    }
    if (call.settings.agc) units_.give_coefs(i, updates_[i]);
    last = &updates_[i];
    last_group = row.group();
    last_lr = lr;
    last_step = step;
  }
}

void CpuStep::update(const StepCall& call, const StepDecision& decision) {
  RECORD_USER_SCOPE("gradops.update");
  const bool gather_squares = call.settings.gathers_squares();
  param_chunks_.resize(gather_squares ? table_.chunks().size() : 0);
  moved_chunks_.resize(call.settings.track_updates ? table_.chunks().size() : 0);
  cpu::update(table_, call.views, rule_.update_chunk, updates_, decision, {param_chunks_, moved_chunks_});
  for (const int64_t i : call.taking_part) {
    *call.rows[i].step() += 1.0f;
    call.rows[i].bump_version();
  }
  if (!gather_squares) return;
  table_.for_each_row([&](int64_t row, size_t first, size_t last) {
    call.rows[row].set_squares(sum_of(std::span(param_chunks_).subspan(first, last - first)));
  });
}

void CpuStep::write_updates(const StepCall& call, bool skip) {
  float* ratio = call.buffers.update_ratio.data_ptr<float>();
  float* rms = call.buffers.param_rms.data_ptr<float>();
  const size_t rows = call.rows.size();
  std::fill_n(ratio, rows, 0.0f);
  if (skip) {
    for (const int64_t i : call.taking_part) ratio[i] = NAN;
    return;
  }
  std::fill_n(rms, rows, 0.0f);
  table_.for_each_row([&](int64_t row, size_t first, size_t last) {
    const double norm = call.rows[row].squares().norm(2.0);
    ratio[row] = update_ratio(sum_of(std::span(moved_chunks_).subspan(first, last - first)).norm(2.0), norm);
    rms[row] = static_cast<float>(rms_of(norm, call.views[row].numel));
  });
}

void CpuStep::write_scalars(const StepCall& call, const Outcome& outcome, const SpikeGuardState& history,
                            float loss_scale) {
  const StepSettings& settings = call.settings;
  float* scalars = call.buffers.scalars.data_ptr<float>();
  int64_t* counters = call.buffers.counters.data_ptr<int64_t>();
  scalars[kGradNorm] = static_cast<float>(outcome.grad_norm);
  scalars[kClipCoef] = outcome.decision.clip_coef;
  scalars[kFoundInf] = outcome.found_inf ? 1.0f : 0.0f;
  scalars[kLossScaleUsed] = loss_scale;
  counters[outcome.decision.skip ? kStepsSkipped : kStepsTaken] += 1;
  if (settings.loss_scale_rule.has_value()) {
    const LossScaleState next =
        next_loss_scale({scalars[kLossScale], counters[kGrowthTracker]}, *settings.loss_scale_rule, outcome.found_inf);
    scalars[kLossScale] = next.scale;
    counters[kGrowthTracker] = next.growth_tracker;
  }
  SpikeGuardState next = history;
  if (settings.guard && !outcome.found_inf) {
    next = next_guard_state(history, outcome.grad_norm, outcome.guarded, *settings.guard);
  }
  scalars[kGuarded] = outcome.guarded ? 1.0f : 0.0f;
  scalars[kLrFactorUsed] = history.lr_factor;
  scalars[kLrFactor] = next.lr_factor;
  scalars[kUsualNorm] = next.usual_norm;
  scalars[kDeviation] = next.deviation;
  counters[kNormsSeen] = next.norms_seen;
}

void CpuStep::write_rows(const StepCall& call, const StepDecision& decision) {
  float* norms = call.buffers.norms.data_ptr<float>();
  float* abs_max = call.buffers.abs_max.data_ptr<float>();
  int64_t* nonfinite = call.buffers.nonfinite.data_ptr<int64_t>();
  bool* capped = call.buffers.capped.data_ptr<bool>();
  const float clip_value = static_cast<float>(call.settings.clip_value);
  for (size_t i = 0; i < call.rows.size(); ++i) {
    norms[i] = static_cast<float>(row_stats_[i].norm(call.settings.norm_type, clip_value));
    abs_max[i] = row_stats_[i].abs_max();
    nonfinite[i] = row_stats_[i].nonfinite;
    capped[i] = !decision.skip && capped_[i];
  }
}

std::string CpuStep::description() const { return std::string("cpu, ") + cpu::isa_name(cpu::current_isa()) + " code"; }

void CpuStep::step(const StepCall& call) {
  cut_into_chunks(call);
  capped_.assign(call.rows.size(), 0);
  const GradScaling& scaling = call.scaling;
  const float scale = scaling.loss_scale.has_value() ? scaling.loss_scale->item<float>() : 1.0f;
  const float inv_scale = scaling.grads_scaled ? inv_loss_scale(scale) : 1.0f;
  const bool found_inf = scaling.found_inf.has_value() && scaling.found_inf->item<double>() != 0.0;

  std::optional<py::gil_scoped_release> release;
  if (table_.elements() > kReleaseGil) {
    for (const int64_t i : call.taking_part) call.rows[i].hold_grad(true);
    release.emplace();
  }
  const SpikeGuardState history = guard_state(call);
  Outcome outcome = measure(call, history, inv_scale, found_inf);
  if (!outcome.decision.skip) {
    if (call.settings.caps()) measure_params(call);
    float& clip_coef = outcome.decision.clip_coef;
    const float smallest = call.settings.agc ? units_.decide(table_, call.settings.max_norm, clip_coef) : 1.0f;
    plan_updates(call, outcome.decision, history.lr_factor);
    update(call, outcome.decision);
    clip_coef = std::min(clip_coef, smallest);
  }
  {
    RECORD_USER_SCOPE("gradops.write_stats");
    write_scalars(call, outcome, history, scale);
    write_rows(call, outcome.decision);
    if (call.settings.track_updates) write_updates(call, outcome.decision.skip);
  }
  if (release.has_value()) {
    release.reset();
    for (const int64_t i : call.taking_part) call.rows[i].hold_grad(false);
  }
}

}  // namespace gradops
