#include "cpu/step.h"

#include <ATen/record_function.h>

#include <algorithm>
#include <functional>

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
  for (const ChunkStats& chunk : chunks) squares.merge(chunk.power_sum, chunk.scale, 2.0);
  return squares;
}

}  // namespace

void CpuStep::cut_into_chunks(const StepCall& call) {
  if (!call.moved) return;
  table_.clear();
  for (const int64_t i : call.taking_part) table_.add_row(i, call.views[i].numel);
  grad_chunks_.resize(table_.chunks().size());
  updates_.resize(call.rows.size());
}

void CpuStep::measure(const StepCall& call, const Unscaling& unscaling, const cpu::Norm& norm) {
  RECORD_USER_SCOPE("gradops.grad_stats");
  if (call.settings.agc) {
    units_.cut(call, table_);
    cpu::chunk_and_unit_stats(table_, call.views, unscaling, norm, grad_chunks_, units_.pieces());
    units_.merge(table_);
  } else {
    cpu::chunk_stats(table_, call.views, kGrad, unscaling, norm, grad_chunks_);
  }
  stats_.params.clear();
  stats_.grads.assign(call.rows.size(), GradStats());
  stats_.taking_part.assign(call.rows.size(), 0);
  for (const int64_t i : call.taking_part) stats_.taking_part[i] = 1;
  table_.for_each_row([&](int64_t row, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) stats_.grads[row].merge(grad_chunks_[i], norm.p);
  });
}

CpuStep::Outcome CpuStep::decide_step(const StepCall& call, const Unscaling& unscaling, const cpu::Norm& norm,
                                      const SpikeGuardState& history, bool found_inf) const {
  const StepSettings& settings = call.settings;
  GradStats all;
  for (const GradStats& stats : stats_.grads) all.merge(stats, norm.p);
  Outcome outcome;
  outcome.grad_norm = all.norm(norm.p, unscaling.clip_value);
  outcome.decision = decide(all, outcome.grad_norm, settings.max_grad_norm(), unscaling, found_inf);
  outcome.found_inf = outcome.decision.skip;
  if (settings.guard) outcome.guarded = guard_step(outcome.decision, outcome.grad_norm, history, *settings.guard);
  return outcome;
}

void CpuStep::measure_params(const StepCall& call) {
  stats_.params.assign(call.rows.size(), {});
  cpu::ChunkTable unknown;
  for (const int64_t row : call.taking_part) {
    if (call.rows[row].squares_known()) continue;
    unknown.add_row(row, call.views[row].numel);
    call.rows[row].set_squares({});
  }
  if (!unknown.chunks().empty()) {
    RECORD_USER_SCOPE("gradops.param_stats");
    std::vector<ChunkStats> chunks(unknown.chunks().size());
    cpu::chunk_stats(unknown, call.views, kParam, Unscaling{}, cpu::Norm{}, chunks);
    unknown.for_each_row([&](int64_t row, size_t first, size_t last) {
      call.rows[row].set_squares(sum_of(std::span(chunks).subspan(first, last - first)));
    });
  }
  for (const int64_t row : call.taking_part) stats_.params[row] = call.rows[row].squares();
}

RowStep CpuStep::row_step(const StepCall& call, int64_t i, const StepDecision& decision, double group_lr) const {
  const ParamRow& row = call.rows[i];
  RowStep result{group_lr, static_cast<double>(*row.step()) + 1.0};
  if (row.scalar() != nullptr) result.scalar = *row.scalar();
  if (!call.settings.measures_params(rule_)) return result;
  const HyperParams& hyper = call.groups[row.group()].hyper;
  const int64_t numel = row.whole_numel();
  const double norm = stats_.params[i].norm(2.0), grad_norm = stats_.grads[i].power.norm(2.0);
  if (rule_.grad_factor != nullptr) {
    result.grad_factor = rule_.grad_factor(hyper, group_lr, norm, decision.clip_coef * grad_norm, numel);
  }
  if (!call.settings.caps()) return result;
  const double rms = rms_of(norm, numel), grad_rms = decision.clip_coef * rms_of(grad_norm, numel);
  const double per_lr = rule_.adapts(hyper, result.step) ? 1.0 : result.grad_factor * rms_per_lr(hyper, rms, grad_rms);
  result.lr = capped_lr(group_lr, rms, result.step, call.settings.relative_step, per_lr);
  return result;
}

void CpuStep::plan_updates(const StepCall& call, const StepDecision& decision, double lr_factor) {
  int64_t last_group = -1;
  RowStep last_step;
  const cpu::RowUpdate* last = nullptr;
  for (const int64_t i : call.taking_part) {
    const ParamRow& row = call.rows[i];
    const HyperParams& hyper = call.groups[row.group()].hyper;
    const double group_lr = hyper.lr * lr_factor;
    const RowStep step = row_step(call, i, decision, group_lr);
    capped_[i] = step.lr < group_lr;
    // Neighbours mostly share all of it; two powers cost more than a tensor of 64 elements.
    if (last != nullptr && row.group() == last_group && step == last_step) {
      updates_[i] = *last;
    } else {
      updates_[i] = {rule_.row_rule(hyper, step)};
    }
    if (call.settings.ema) updates_[i].ema_weight = ema_weight(*call.settings.ema, step.step);
    if (call.settings.agc) units_.give_coefs(i, updates_[i]);
    last = &updates_[i];
    last_group = row.group();
    last_step = step;
  }
}

void CpuStep::count_update(ParamRow& row, const HyperParams& hyper) const {
  *row.step() += 1.0f;
  if (rule_.next_scalar != nullptr) *row.scalar() = rule_.next_scalar(hyper, *row.step(), *row.scalar());
  row.bump_version();
}

void CpuStep::update(const StepCall& call, const StepDecision& decision) {
  RECORD_USER_SCOPE("gradops.update");
  const bool gather_squares = call.settings.gathers_squares(rule_);
  param_chunks_.resize(gather_squares ? table_.chunks().size() : 0);
  moved_chunks_.resize(call.settings.track_updates ? table_.chunks().size() : 0);
  cpu::update(table_, call.views, rule_.update_chunk, updates_, decision, {param_chunks_, moved_chunks_});
  for (const int64_t i : call.taking_part) {
    count_update(call.rows[i], call.groups[call.rows[i].group()].hyper);
  }
  if (!gather_squares) return;
  table_.for_each_row([&](int64_t row, size_t first, size_t last) {
    call.rows[row].set_squares(sum_of(std::span(param_chunks_).subspan(first, last - first)));
  });
}

// How far the update has moved each row, how large the rows are now, and the smallest factor of a unit, of all
// processes' parts.
void CpuStep::learn_updates(const StepCall& call, float& smallest_coef) {
  moved_.assign(call.rows.size(), {});
  stats_.params.assign(call.rows.size(), {});
  if (call.settings.track_updates) {
    table_.for_each_row([&](int64_t row, size_t first, size_t last) {
      moved_[row] = sum_of(std::span(moved_chunks_).subspan(first, last - first));
      stats_.params[row] = call.rows[row].squares();
    });
  }
  if (call.exchange != nullptr) share_updates(*call.exchange, moved_, stats_.params, smallest_coef);
}

void CpuStep::write_updates(const StepCall& call, bool skip) {
  float* ratio = call.buffers.update_ratio.data_ptr<float>();
  float* rms = call.buffers.param_rms.data_ptr<float>();
  for (size_t i = 0; i < call.rows.size(); ++i) {
    ratio[i] = skip && stats_.taking_part[i] ? NAN : 0.0f;
    if (skip) continue;
    const double norm = stats_.params[i].norm(2.0);
    ratio[i] = update_ratio(moved_[i].norm(2.0), norm);
    rms[i] = static_cast<float>(rms_of(norm, call.rows[i].whole_numel()));
  }
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
  if (settings.loss_scale_policy.has_value()) {
    const LossScaleState next = next_loss_scale({scalars[kLossScale], counters[kGrowthTracker]},
                                                *settings.loss_scale_policy, outcome.found_inf);
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
    norms[i] = static_cast<float>(stats_.grads[i].norm(call.settings.norm_type, clip_value));
    abs_max[i] = stats_.grads[i].abs_max();
    nonfinite[i] = stats_.grads[i].nonfinite;
    capped[i] = !decision.skip && capped_[i];
  }
}

std::string CpuStep::description() const { return std::string("cpu, ") + cpu::isa_name(cpu::current_isa()) + " code"; }

void CpuStep::step(const StepCall& call) {
  cut_into_chunks(call);
  capped_.assign(call.rows.size(), 0);
  const StepSettings& settings = call.settings;
  const GradScaling& scaling = call.scaling;
  const float scale = scaling.loss_scale.has_value() ? scaling.loss_scale->item<float>() : 1.0f;
  const float inv_scale = scaling.grads_scaled ? inv_loss_scale(scale) : 1.0f;
  bool found_inf = scaling.found_inf.has_value() && scaling.found_inf->item<double>() != 0.0;

  std::optional<py::gil_scoped_release> release;
  if (table_.elements() > kReleaseGil) {
    for (const int64_t i : call.taking_part) call.rows[i].hold_grad(true);
    release.emplace();
  }
  const Unscaling unscaling{inv_scale, static_cast<float>(settings.clip_value)};
  const cpu::Norm norm{norm_type_of(settings.norm_type), settings.norm_type};
  measure(call, unscaling, norm);
  if (settings.measures_params(rule_)) measure_params(call);
  if (call.exchange != nullptr) {
    RECORD_USER_SCOPE("gradops.exchange");
    share_stats(*call.exchange, call.rows, norm, stats_, settings.agc ? &units_ : nullptr, found_inf);
    if (std::none_of(stats_.taking_part.begin(), stats_.taking_part.end(), std::identity())) return;
  }
  const SpikeGuardState history = guard_state(call);
  Outcome outcome = decide_step(call, unscaling, norm, history, found_inf);
  if (!outcome.decision.skip) {
    float& clip_coef = outcome.decision.clip_coef;
    float smallest = settings.agc ? units_.decide(settings.max_norm, clip_coef) : 1.0f;
    plan_updates(call, outcome.decision, history.lr_factor);
    update(call, outcome.decision);
    if (settings.track_updates || settings.agc) learn_updates(call, smallest);
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
