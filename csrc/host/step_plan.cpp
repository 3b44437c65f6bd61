#include "host/step_plan.h"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <atomic>
#include <unordered_map>

#include "host/containers.h"

namespace gradops {
namespace {

// From so many parameters on their objects do not fit into the nearest caches, and walking them takes longer than
// waking a thread.
constexpr int64_t kManyRows = 1000;

// From so many on they are fetched ahead: what a forward and a backward have left in the caches is little.
constexpr int64_t kPrefetchFrom = 64;

// How many parameters ahead their objects are fetched: about as many as memory needs.
constexpr int64_t kPrefetchRows = 4;

py::object as_groups(py::handle param_groups) { return as_sequence(param_groups.ptr(), "param_groups"); }

py::dict group_at(const py::object& groups, Py_ssize_t index) {
  return as_dict(PySequence_Fast_GET_ITEM(groups.ptr(), index), "a param_group");
}

py::object params_in(const py::dict& group) {
  static PyObject* const params = PyUnicode_InternFromString("params");
  return as_sequence(group_entry(group, params), "'params' of a param_group");
}

// What a state's entries are in, or null where that is no dict and so of unknown size.
const void* entries_of(PyObject* state) {
  return PyDict_Check(state) ? &reinterpret_cast<PyDictObject*>(state)->ma_keys : nullptr;
}

}  // namespace

StepPlan::StepPlan(const std::string& rule, const RuleKeys& keys)
    : rule_(update_rule(rule)),
      state_keys_(keys.state),
      reader_(rule_, keys.hyper, keys.decoupled, keys.always_decouples) {
  const int moments = static_cast<int>(keys.state.moments.size()), hypers = static_cast<int>(keys.hyper.size());
  const int scalars = static_cast<int>(keys.state.scalars.size());
  TORCH_CHECK_VALUE(moments == rule_.moments && scalars == rule_.scalars && hypers == rule_.hypers, "gradops: ", rule,
                    " has ", rule_.moments, " moments, ", rule_.scalars, " scalars and ", rule_.hypers,
                    " numbers of its own, got ", moments, ", ", scalars, " and ", hypers);
}

void StepPlan::bind_params(py::handle param_groups, const std::vector<std::string>& names, StepBuffers buffers,
                           std::shared_ptr<Exchange> exchange) {
  std::unordered_map<PyObject*, ParamRow*> known;
  for (ParamRow& row : rows_) known[row.object()] = &row;
  std::vector<std::pair<py::object, int64_t>> params;
  std::vector<int64_t> group_sizes;
  const py::object groups = as_groups(param_groups);
  for (Py_ssize_t g = 0; g < PySequence_Fast_GET_SIZE(groups.ptr()); ++g) {
    const py::object of_group = params_in(group_at(groups, g));
    for (const py::handle param : of_group) {
      if (!THPVariable_Check(param.ptr())) {
        throw py::type_error(c10::str("gradops: 'params' of param_group ", g, " holds a ",
                                      Py_TYPE(param.ptr())->tp_name, "; expected tensors"));
      }
      params.emplace_back(py::reinterpret_borrow<py::object>(param), g);
    }
    group_sizes.push_back(py::len(of_group));
  }
  TORCH_CHECK(names.size() == params.size(), "gradops: ", params.size(), " parameters have ", names.size(), " names");
  const at::Device device = buffers.scalars.device();
  TORCH_CHECK(has_backend(device), "gradops: the parameters are on ", device, "; this build runs on ",
              backend_devices());
  std::vector<ParamRow> fresh;  // made before anything known is taken apart, since making one may raise
  for (size_t i = 0; i < params.size(); ++i) {
    const auto& [param, group] = params[i];
    const auto found = known.find(param.ptr());
    if (found == known.end() || !found->second->is(param.ptr(), group, device)) {
      fresh.emplace_back(param, names[i], group, device, state_keys_, exchange.get());
    }
  }
  std::vector<ParamRow> rows;
  rows.reserve(params.size());
  bool same_rows = rows_.size() == params.size();
  for (size_t i = 0, next = 0; i < params.size(); ++i) {
    const auto& [param, group] = params[i];
    const auto found = known.find(param.ptr());
    const bool keep = found != known.end() && found->second->is(param.ptr(), group, device);
    same_rows &= keep && found->second == &rows_[i];
    rows.push_back(std::move(keep ? *found->second : fresh[next++]));
    rows.back().rename(names[i]);
  }
  if (!same_rows) state_order_.clear();  // its rows are others now
  rows_ = std::move(rows);
  views_.assign(rows_.size(), {});
  moved_ = true;
  if (backend_ == nullptr || device != device_) backend_ = make_backend(device, rule_);
  backend_->forget_rows();
  device_ = device;
  group_sizes_ = std::move(group_sizes);
  buffers_ = std::move(buffers);
  exchange_ = std::move(exchange);
}

void StepPlan::bind_state(py::handle states) {
  state_order_.clear();
  std::unordered_map<PyObject*, int64_t> row_of;
  for (size_t i = 0; i < rows_.size(); ++i) row_of[rows_[i].object()] = i;
  std::vector<bool> bound(rows_.size(), false);
  for (const auto& [param, state] : as_dict(states.ptr(), "the optimizer's state")) {
    const auto found = row_of.find(param.ptr());
    const int64_t row = found == row_of.end() ? -1 : found->second;
    if (row >= 0) {
      const bool known = rows_[row].state_is(state.ptr()) && !rows_[row].state_moved();
      if (!known) rows_[row].bind_state(state, exchange_.get());
      bound[row] = true;
    }
    state_order_.push_back({state.ptr(), row, row < 0 ? nullptr : entries_of(state.ptr())});
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (!bound[i]) rows_[i].bind_state(py::none(), exchange_.get());
  }
}

bool StepPlan::same_params(const py::object& groups) const {
  if (PySequence_Fast_GET_SIZE(groups.ptr()) != static_cast<Py_ssize_t>(group_sizes_.size())) return false;
  size_t row = 0;
  for (size_t g = 0; g < group_sizes_.size(); ++g) {
    const py::object params = params_in(group_at(groups, g));
    if (PySequence_Fast_GET_SIZE(params.ptr()) != group_sizes_[g]) return false;
    PyObject** const items = PySequence_Fast_ITEMS(params.ptr());
    for (int64_t i = 0; i < group_sizes_[g]; ++i, ++row) {
      if (items[i] != rows_[row].object()) return false;
    }
  }
  return true;
}

bool StepPlan::same_state(const py::dict& states) const {
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  size_t seen = 0;
  for (Py_ssize_t position = 0; PyDict_Next(states.ptr(), &position, &key, &value); ++seen) {
    if (seen >= state_order_.size() || state_order_[seen].state != value) return false;
    if (seen + 2 * kPrefetchRows < state_order_.size()) {
      __builtin_prefetch(state_order_[seen + 2 * kPrefetchRows].state);
      if (const auto* keys = state_order_[seen + kPrefetchRows].keys; keys != nullptr) {
        __builtin_prefetch(*static_cast<void* const*>(keys));
      }
    }
    const int64_t row = state_order_[seen].row;
    if (row >= 0 && !rows_[row].state_is(value)) return false;
  }
  return seen == state_order_.size();
}

StepPlan::ShardsInHand::ShardsInHand(StepPlan& plan) : plan_(plan) {
  if (plan.exchange_ == nullptr) return;
  const std::span<ParamRow> rows = plan.rows_;
  for (size_t i = 0; i < rows.size() + ParamRow::kShardHops * kPrefetchRows; ++i) {
    for (int hop = 0; hop < ParamRow::kShardHops; ++hop) {
      const size_t row = i - hop * kPrefetchRows;  // wraps to a large one before the first
      if (row < rows.size()) rows[row].prefetch_shard(hop, *plan.exchange_);
    }
    const size_t row = i - ParamRow::kShardHops * kPrefetchRows;
    if (row < rows.size()) rows[row].follow_shard(*plan.exchange_);
  }
}

StepPlan::ShardsInHand::~ShardsInHand() {
  if (plan_.exchange_ == nullptr) return;
  for (ParamRow& row : plan_.rows_) row.let_go_of_shard();
}

StepPlan::Followed StepPlan::follow_params() {
  RECORD_USER_SCOPE("gradops.follow_params");
  const int64_t count = static_cast<int64_t>(rows_.size());
  std::vector<uint8_t> has_grad(count);
  std::atomic<bool> state_moved = false;
  at::parallel_for(0, count, kManyRows, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (count > kPrefetchFrom && i + 3 * kPrefetchRows < last) {
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
  const ShardsInHand shards(*this);
  follow_params();
  std::vector<int64_t> missing;
  std::copy_if(taking_part_.begin(), taking_part_.end(), std::back_inserter(missing),
               [&](int64_t i) { return !rows_[i].has_state(); });
  return missing;
}

void StepPlan::refresh() {
  for (ParamRow& row : rows_) row.forget_values();
}

void StepPlan::set_views(int64_t row, const HyperParams& hyper) {
  rows_[row].set_views(views_[row], [&](int moment) {
    const bool used = moment < rule_.moments && rule_.uses(hyper.variant, moment);
    TORCH_CHECK(!used || rows_[row].has_moment(moment), "gradops: ", state_keys_.moments[moment].because,
                ", but the state of '", rows_[row].name(), "' has no ", state_keys_.moments[moment].name);
    return used;
  });
}

// Whether anything moved since the last step that a backend carried out; the views are then set anew.
bool StepPlan::follow_views(const std::vector<GroupHyper>& hypers) {
  std::vector<int> variants;
  for (const GroupHyper& group : hypers) variants.push_back(group.hyper.variant);
  moved_ |= taking_part_ != planned_rows_ || variants != planned_variants_;
  for (const int64_t i : taking_part_) moved_ |= rows_[i].relinked();
  if (!moved_) return false;
  for (const int64_t i : taking_part_) set_views(i, hypers[rows_[i].group()].hyper);
  planned_rows_ = taking_part_;
  planned_variants_ = std::move(variants);
  return true;
}

bool StepPlan::step(py::handle param_groups, py::handle states, const StepSettings& settings,
                    const GradScaling& scaling) {
  RECORD_USER_SCOPE("gradops.step");
  const py::object groups = as_groups(param_groups);
  if (!same_params(groups) || !same_state(as_dict(states.ptr(), "the optimizer's state"))) return false;
  const ShardsInHand shards(*this);
  try {
    if (follow_params() != Followed::kReady) return false;
  } catch (const c10::Error&) {
    return false;  // the model may have moved as a whole; where it has not, params_without_state() says what is wrong
  }
  if (taking_part_.empty() && exchange_ == nullptr) return true;

  std::vector<GroupHyper> hypers;
  for (size_t g = 0; g < group_sizes_.size(); ++g) {
    hypers.push_back(reader_.read(group_at(groups, g), device_, settings.l1));
  }
  const bool moved = follow_views(hypers);
  backend_->step({rows_, views_, taking_part_, hypers, moved, settings, scaling, buffers_, exchange_.get()});
  moved_ = false;
  return true;
}

}  // namespace gradops
