#include "step_plan.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <atomic>
#include <unordered_map>

#include "checks.h"

namespace gradops {
namespace {

// Work below this many elements is over before another thread could use the interpreter.
constexpr int64_t kReleaseGil = 1 << 20;

// From so many parameters on their objects do not fit into the nearest caches, and walking them takes longer than
// waking a thread.
constexpr int64_t kManyRows = 1000;

// How many parameters ahead their objects are fetched: about as many as memory needs.
constexpr int64_t kPrefetchRows = 4;

PyObject* group_entry(PyObject* group, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(group, key);
  TORCH_CHECK(value != nullptr, "gradops: a param_group has no '", PyUnicode_AsUTF8(key), "'");
  return value;
}

double to_double(PyObject* value) {
  if (THPVariable_Check(value)) return THPVariable_Unpack(value).item<double>();
  const double number = PyFloat_AsDouble(value);
  if (number == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return number;
}

double entry(PyObject* group, PyObject* key) { return to_double(group_entry(group, key)); }

bool flag(PyObject* group, PyObject* key) { return PyObject_IsTrue(group_entry(group, key)) == 1; }

#define GRADOPS_INTERNED(NAME) static PyObject* const NAME = PyUnicode_InternFromString(#NAME)

AdamHyper read_hyper(PyObject* group) {
  GRADOPS_INTERNED(lr);
  GRADOPS_INTERNED(betas);
  GRADOPS_INTERNED(eps);
  GRADOPS_INTERNED(weight_decay);
  GRADOPS_INTERNED(amsgrad);
  GRADOPS_INTERNED(maximize);
  GRADOPS_INTERNED(decoupled_weight_decay);
  AdamHyper hyper;
  hyper.lr = entry(group, lr);
  const auto pair = py::reinterpret_borrow<py::sequence>(group_entry(group, betas));
  TORCH_CHECK(py::len(pair) == 2, "gradops: betas must be two numbers, got ", py::len(pair));
  hyper.beta1 = to_double(py::object(pair[0]).ptr());
  hyper.beta2 = to_double(py::object(pair[1]).ptr());
  hyper.eps = entry(group, eps);
  hyper.weight_decay = entry(group, weight_decay);
  hyper.amsgrad = flag(group, amsgrad);
  hyper.maximize = flag(group, maximize);
  hyper.decay_kind = flag(group, decoupled_weight_decay) ? WeightDecay::kDecoupled : WeightDecay::kL2;
  return hyper;
}

PyObject* group_params(PyObject* group) {
  GRADOPS_INTERNED(params);
  return group_entry(group, params);
}

}  // namespace

void StepPlan::bind_params(const py::list& param_groups, const std::vector<std::string>& names, StepBuffers buffers) {
  std::unordered_map<PyObject*, ParamRow*> known;
  for (ParamRow& row : rows_) known[row.object()] = &row;
  std::vector<std::pair<PyObject*, int64_t>> params;
  std::vector<int64_t> group_sizes;
  for (const py::handle group : param_groups) {
    const py::list list = py::reinterpret_borrow<py::list>(group_params(group.ptr()));
    for (const py::handle param : list) params.emplace_back(param.ptr(), group_sizes.size());
    group_sizes.push_back(py::len(list));
  }
  std::vector<ParamRow> fresh;  // made before anything known is taken apart, since making one may raise
  for (size_t i = 0; i < params.size(); ++i) {
    const auto [param, group] = params[i];
    const auto found = known.find(param);
    if (found == known.end() || !found->second->is(param, group)) fresh.emplace_back(param, names[i], group);
  }
  std::vector<ParamRow> rows;
  rows.reserve(params.size());
  for (size_t i = 0, next = 0; i < params.size(); ++i) {
    const auto [param, group] = params[i];
    const auto found = known.find(param);
    const bool keep = found != known.end() && found->second->is(param, group);
    rows.push_back(std::move(keep ? *found->second : fresh[next++]));
    rows.back().rename(names[i]);
  }
  rows_ = std::move(rows);
  views_.assign(rows_.size(), {});
  updates_.assign(rows_.size(), {});
  row_stats_.assign(rows_.size(), {});
  capped_.assign(rows_.size(), 0);
  numels_.clear();
  group_sizes_ = std::move(group_sizes);
  buffers_ = std::move(buffers);
}

void StepPlan::bind_state(const py::dict& state) {
  state_order_.clear();
  std::unordered_map<PyObject*, int64_t> row_of;
  for (size_t i = 0; i < rows_.size(); ++i) row_of[rows_[i].object()] = i;
  std::vector<bool> bound(rows_.size(), false);
  for (const auto item : state) {
    const auto found = row_of.find(item.first.ptr());
    const int64_t row = found == row_of.end() ? -1 : found->second;
    if (row >= 0) {
      const bool known = rows_[row].state_is(item.second.ptr()) && !rows_[row].state_moved();
      if (!known) rows_[row].bind_state(item.second);
      bound[row] = true;
    }
    state_order_.emplace_back(item.second.ptr(), row);
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (!bound[i]) rows_[i].bind_state(py::none());
  }
}

bool StepPlan::same_params(const py::list& param_groups) const {
  if (py::len(param_groups) != group_sizes_.size()) return false;
  size_t row = 0;
  for (size_t g = 0; g < group_sizes_.size(); ++g) {
    PyObject* params = group_params(PyList_GET_ITEM(param_groups.ptr(), g));
    if (PyList_Size(params) != group_sizes_[g]) return false;
    for (int64_t i = 0; i < group_sizes_[g]; ++i, ++row) {
      if (PyList_GET_ITEM(params, i) != rows_[row].object()) return false;
    }
  }
  return true;
}

bool StepPlan::same_state(const py::dict& state) const {
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  size_t seen = 0;
  for (Py_ssize_t position = 0; PyDict_Next(state.ptr(), &position, &key, &value); ++seen) {
    if (seen >= state_order_.size() || state_order_[seen].first != value) return false;
    if (seen + 2 * kPrefetchRows < state_order_.size()) {
      __builtin_prefetch(state_order_[seen + 2 * kPrefetchRows].first);
      __builtin_prefetch(reinterpret_cast<PyDictObject*>(state_order_[seen + kPrefetchRows].first)->ma_keys);
    }
    const int64_t row = state_order_[seen].second;
    if (row >= 0 && !rows_[row].state_is(value)) return false;
  }
  return seen == state_order_.size();
}

StepPlan::Followed StepPlan::follow_params() {
  const int64_t count = static_cast<int64_t>(rows_.size());
  std::vector<uint8_t> has_grad(count);
  std::atomic<bool> state_moved = false;
  at::parallel_for(0, count, kManyRows, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (count > kManyRows && i + 3 * kPrefetchRows < last) {
        rows_[i + 3 * kPrefetchRows].prefetch_tensors();
        rows_[i + 2 * kPrefetchRows].prefetch_pointees();
        rows_[i + kPrefetchRows].prefetch_grad();
      }
      has_grad[i] = rows_[i].follow(views_[i]);
      if (has_grad[i] && rows_[i].state_moved()) state_moved = true;
    }
  });
  taking_part_.clear();
  bool all_have_state = true;
  for (int64_t i = 0; i < count; ++i) {
    if (!has_grad[i]) continue;
    taking_part_.push_back(i);
    all_have_state &= rows_[i].has_state();
  }
  return state_moved ? Followed::kStateMoved : all_have_state ? Followed::kReady : Followed::kStateMissing;
}

std::vector<int64_t> StepPlan::params_without_state() {
  follow_params();
  std::vector<int64_t> missing;
  std::copy_if(taking_part_.begin(), taking_part_.end(), std::back_inserter(missing),
               [&](int64_t i) { return !rows_[i].has_state(); });
  return missing;
}

void StepPlan::refresh() {
  for (ParamRow& row : rows_) row.forget_squares();
}

StepPlan::Outcome StepPlan::measure(const StepSettings& settings, float inv_scale, bool found_inf) {
  const GradRule rule{inv_scale, static_cast<float>(settings.clip_value)};
  const cpu::Norm norm{norm_type_of(settings.norm_type), settings.norm_type};
  cpu::chunk_stats(table_, views_, &cpu::TensorRow::grad, rule, norm, grad_chunks_);
  std::fill(row_stats_.begin(), row_stats_.end(), GradStats());
  Outcome outcome;
  table_.for_each_row([&](int64_t row, size_t first, size_t last) {
    GradStats& stats = row_stats_[row];
    for (size_t i = first; i < last; ++i) stats.merge(grad_chunks_[i], norm.p);
    outcome.all.merge(stats, norm.p);
  });
  outcome.grad_norm = outcome.all.norm(norm.p, rule.clip_value);
  outcome.decision = decide(outcome.all, outcome.grad_norm, settings.max_norm, rule, found_inf);
  return outcome;
}

void StepPlan::measure_params() {
  cpu::ChunkTable unknown;
  for (const int64_t row : taking_part_) {
    if (rows_[row].squares_known()) continue;
    unknown.add_row(row, views_[row].numel);
    rows_[row].set_squares({});
  }
  std::vector<ChunkStats> chunks(unknown.chunks().size());
  cpu::chunk_stats(unknown, views_, &cpu::TensorRow::param, GradRule{}, cpu::Norm{}, chunks);
  unknown.for_each_row([&](int64_t row, size_t first, size_t last) {
    PowerSum squares;
    for (size_t i = first; i < last; ++i) squares.merge(chunks[i].power_sum, chunks[i].unit, 2.0);
    rows_[row].set_squares(squares);
  });
}

void StepPlan::plan_updates(const std::vector<AdamHyper>& hypers, const RelativeStepRule& relative_step) {
  int64_t last_group = -1;
  double last_lr = 0.0;
  double last_step = 0.0;
  const cpu::RowUpdate* last = nullptr;
  for (const int64_t i : taking_part_) {
    const ParamRow& row = rows_[i];
    const AdamHyper& hyper = hypers[row.group()];
    const double step = static_cast<double>(*row.step()) + 1.0;
    double lr = hyper.lr;
    if (!std::isinf(relative_step.cap)) {
      const double rms = row.squares().norm(2.0) / std::sqrt(std::max<double>(1.0, views_[i].numel));
      lr = capped_lr(hyper.lr, rms, step, relative_step);
    }
    capped_[i] = lr < hyper.lr;
    // Neighbours mostly share group, step and lr; two powers cost more than a tensor of 64 elements.
    if (last != nullptr && row.group() == last_group && lr == last_lr && step == last_step) {
      updates_[i] = *last;
    } else {
      updates_[i] = {adam_rule(hyper, lr, step), hyper.decay_kind};
    }
    last = &updates_[i];
    last_group = row.group();
    last_lr = lr;
    last_step = step;
  }
}

void StepPlan::update(const StepDecision& decision, bool gather_squares) {
  param_chunks_.resize(gather_squares ? table_.chunks().size() : 0);
  cpu::adam_step(table_, views_, updates_, decision, param_chunks_);
  for (const int64_t i : taking_part_) {
    *rows_[i].step() += 1.0f;
    rows_[i].bump_version();
  }
  if (!gather_squares) return;
  table_.for_each_row([&](int64_t row, size_t first, size_t last) {
    PowerSum squares;
    for (size_t i = first; i < last; ++i) squares.merge(param_chunks_[i].power_sum, param_chunks_[i].unit, 2.0);
    rows_[row].set_squares(squares);
  });
}

void StepPlan::write_stats(const StepSettings& settings, const Outcome& outcome, float loss_scale) {
  float* scalars = buffers_.scalars.data_ptr<float>();
  int64_t* counters = buffers_.counters.data_ptr<int64_t>();
  const StepDecision& decision = outcome.decision;
  scalars[kGradNorm] = static_cast<float>(outcome.grad_norm);
  scalars[kClipCoef] = decision.clip_coef;
  scalars[kFoundInf] = decision.skip ? 1.0f : 0.0f;
  scalars[kLossScaleUsed] = loss_scale;
  counters[decision.skip ? kStepsSkipped : kStepsTaken] += 1;
  if (settings.loss_scale_rule.has_value()) {
    const LossScaleState next =
        next_loss_scale({scalars[kLossScale], counters[kGrowthTracker]}, *settings.loss_scale_rule, decision.skip);
    scalars[kLossScale] = next.scale;
    counters[kGrowthTracker] = next.growth_tracker;
  }
  float* norms = buffers_.norms.data_ptr<float>();
  float* abs_max = buffers_.abs_max.data_ptr<float>();
  int64_t* nonfinite = buffers_.nonfinite.data_ptr<int64_t>();
  bool* capped = buffers_.capped.data_ptr<bool>();
  const float clip_value = static_cast<float>(settings.clip_value);
  for (size_t i = 0; i < rows_.size(); ++i) {
    norms[i] = static_cast<float>(row_stats_[i].norm(settings.norm_type, clip_value));
    abs_max[i] = row_stats_[i].abs_max();
    nonfinite[i] = row_stats_[i].nonfinite;
    capped[i] = !decision.skip && capped_[i];
  }
}

bool StepPlan::step(const py::list& param_groups, const py::dict& state, const StepSettings& settings,
                    const std::optional<at::Tensor>& loss_scale, bool grads_scaled,
                    const std::optional<at::Tensor>& found_inf) {
  if (!same_params(param_groups) || !same_state(state)) return false;
  if (follow_params() != Followed::kReady) return false;
  if (taking_part_.empty()) return true;

  std::vector<AdamHyper> hypers;
  for (const py::handle group : param_groups) hypers.push_back(read_hyper(group.ptr()));
  std::vector<int64_t> numels(rows_.size(), -1);
  std::fill(capped_.begin(), capped_.end(), 0);
  for (const int64_t i : taking_part_) {
    const bool amsgrad = hypers[rows_[i].group()].amsgrad;
    TORCH_CHECK(!amsgrad || rows_[i].has_max_exp_avg_sq(), "gradops: amsgrad is on, but the state of '",
                rows_[i].name(), "' has no max_exp_avg_sq");
    rows_[i].set_state_views(views_[i], amsgrad);
    numels[i] = views_[i].numel;
  }
  if (numels != numels_) {
    table_.clear();
    for (const int64_t i : taking_part_) table_.add_row(i, numels[i]);
    grad_chunks_.resize(table_.chunks().size());
    numels_ = std::move(numels);
  }
  const float scale = loss_scale.has_value() ? loss_scale->item<float>() : 1.0f;
  const float inv_scale = grads_scaled ? inv_loss_scale(scale) : 1.0f;
  const bool already_found_inf = found_inf.has_value() && found_inf->item<double>() != 0.0;
  const bool caps = !std::isinf(settings.relative_step.cap);

  std::optional<py::gil_scoped_release> release;
  if (table_.elements() > kReleaseGil) {
    for (const int64_t i : taking_part_) rows_[i].hold_grad(true);
    release.emplace();
  }
  const Outcome outcome = measure(settings, inv_scale, already_found_inf);
  if (!outcome.decision.skip) {
    if (caps) measure_params();
    plan_updates(hypers, settings.relative_step);
    update(outcome.decision, caps);
  }
  write_stats(settings, outcome, scale);
  if (release.has_value()) {
    release.reset();
    for (const int64_t i : taking_part_) rows_[i].hold_grad(false);
  }
  return true;
}

}  // namespace gradops
