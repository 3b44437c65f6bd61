#include "cuda/host/step.h"

#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

namespace gradops {

CudaStep::CudaStep(at::Device device, const UpdateRuleInfo& rule)
    : device_(device), rule_(rule), rows_(device, rule.cuda), units_(device), shards_(device) {}

std::vector<cuda::GroupRule> CudaStep::rules_of(const StepCall& call) const {
  std::vector<cuda::GroupRule> rules;
  for (const GroupHyper& group : call.groups) {
    cuda::GroupRule& rule = rules.emplace_back();
    rule.hyper = group.hyper;
    if (!group.lr.defined()) continue;
    const at::ScalarType type = group.lr.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble, "gradops: a tensor lr must be Float or Double, got ", type);
    rule.lr = group.lr.const_data_ptr();
    rule.lr_is_double = type == at::kDouble;
  }
  return rules;
}

const float* CudaStep::scalar(const std::optional<at::Tensor>& value) {
  if (!value.has_value()) return nullptr;
  held_.push_back(value->to(device_, at::kFloat, /*non_blocking=*/true));
  return held_.back().const_data_ptr<float>();
}

cuda::StepArgs CudaStep::args_of(const StepCall& call) {
  const StepSettings& settings = call.settings;
  const StepBuffers& buffers = call.buffers;
  cuda::StepArgs args;
  args.table = several() ? rows_.table_of_several() : rows_.table();
  args.work = rows_.work();
  args.stats = {buffers.scalars.data_ptr<float>(),      buffers.counters.data_ptr<int64_t>(),
                buffers.norms.data_ptr<float>(),        buffers.abs_max.data_ptr<float>(),
                buffers.nonfinite.data_ptr<int64_t>(),  buffers.capped.data_ptr<bool>(),
                buffers.update_ratio.data_ptr<float>(), buffers.param_rms.data_ptr<float>()};
  args.policies.max_norm = settings.max_grad_norm();
  args.policies.norm_type = settings.norm_type;
  args.policies.clip_value = static_cast<float>(settings.clip_value);
  args.policies.relative_step = settings.relative_step;
  args.policies.moves_loss_scale = settings.loss_scale_policy.has_value();
  args.policies.track_updates = settings.track_updates;
  args.policies.gathers_squares = settings.gathers_squares(rule_);
  if (args.policies.moves_loss_scale) args.policies.loss_scale = *settings.loss_scale_policy;
  args.policies.guards = settings.guard.has_value();
  if (args.policies.guards) args.policies.guard = *settings.guard;
  args.table.averaged &= settings.ema.has_value();  // a row that takes no part may still say that it has an average
  if (args.table.averaged) args.policies.ema = *settings.ema;
  if (agc_) {
    args.policies.agc_ratio = settings.max_norm;
    args.units = units_.table();
    args.unit_work = units_.work();
  }
  args.loss_scale = scalar(call.scaling.loss_scale);
  args.found_inf = scalar(call.scaling.found_inf);
  args.grads_scaled = call.scaling.grads_scaled;
  return args;
}

void CudaStep::measure_params(const StepCall& call, const cuda::StepArgs& args) {
  std::vector<uint8_t> marked(call.rows.size(), 0);
  bool any = false;
  for (const int64_t i : call.taking_part) any |= marked[i] = !call.rows[i].squares_known();
  if (!any) return;
  RECORD_USER_SCOPE("gradops.param_stats");
  held_.push_back(to_device(marked.data(), marked.size(), device_));
  cuda::param_stats(form(), args, held_.back().const_data_ptr<uint8_t>(), current_stream(device_));
}

bool CudaStep::link(const StepCall& call) {
  std::vector<cuda::TensorRow> rows = rows_.rows();
  rows.resize(call.rows.size());
  for (const int64_t i : call.taking_part) {
    rows[i].step = call.rows[i].step();
    rows[i].scalar = call.rows[i].scalar();
    rows[i].group = static_cast<int32_t>(call.rows[i].group());
  }
  return rows_.link(std::move(rows), call.views, call.taking_part);
}

// Rows that take no part keep the units that they had.
void CudaStep::link_units(const StepCall& call) {
  std::vector<bool> clips_units;
  for (const GroupHyper& group : call.groups) clips_units.push_back(group.clips_units);
  if (!call.moved && clips_units == clips_units_) return;
  clips_units_ = std::move(clips_units);
  units_of_rows_.resize(call.rows.size());
  for (const int64_t i : call.taking_part) {
    const bool clips = call.groups[call.rows[i].group()].clips_units;
    units_of_rows_[i] = clips ? call.rows[i].units() : Units();
  }
  units_.link(rows_.rows(), units_of_rows_);
}

std::string CudaStep::description() const {
  if (shared_) return "launches before and after an exchange: parameters are sharded";
  return agc_ ? "three launches: gradients are clipped by units" : form().description;
}

void CudaStep::captured(const StepCall& call) {
  rows_.captured();
  units_.captured();
  shards_.captured();
  grads_.captured();
  groups_.captured();
  in_graphs_.insert(in_graphs_.end(), held_.begin(), held_.end());
  if (std::all_of(call.groups.begin(), call.groups.end(), [](const auto& group) { return group.lr.defined(); })) return;
  TORCH_WARN_ONCE(
      "gradops: a float lr is captured as it is now, and the graph's replays will not follow a scheduler; pass "
      "lr=torch.tensor(...) on the parameters' device");
}

void CudaStep::launch(const StepCall& call) {
  const std::vector<const void*> grads = DeviceRows::grads(call.views, call.taking_part);
  const std::vector<cuda::GroupRule> rules = rules_of(call);
  cuda::StepArgs args = args_of(call);
  if (call.settings.measures_params(rule_)) measure_params(call, args);
  if (!cuda::travels_inline(form(), grads.size(), rules.size())) {
    args.grads = grads_.update(grads, device_);
    args.groups = groups_.update(rules, device_);
  }
  const cuda::Stream stream = current_stream(device_);
  const cuda::StepCall of_device{args, grads, rules};
  if (shared_) {
    const bool compares_params = call.settings.measures_params(rule_);
    shards_.step({*rule_.cuda, form(), of_device, !call.taking_part.empty(), compares_params, stream}, *call.exchange);
  } else {
    RECORD_USER_SCOPE("gradops.one_pass_step");
    const cuda::Launches step = agc_ ? rule_.cuda->agc_step : rule_.cuda->step;
    step(form(), of_device, stream);
  }
  if (cuda::capturing(stream)) captured(call);
}

void CudaStep::step(const StepCall& call) {
  const c10::DeviceGuard guard(device_);
  held_.clear();
  if (call.moved && link(call)) {
    for (ParamRow& row : call.rows) row.forget_squares();
  }
  shared_ = call.exchange != nullptr;
  if (shared_ && call.moved) shards_.link(rows_.rows(), call.rows);
  agc_ = call.settings.agc;
  if (agc_) link_units(call);
  if (call.settings.track_updates) rows_.make_room_for_updates();
  const bool measures = call.settings.measures_params(rule_);
  if (measures && (rule_.grad_factor != nullptr || !rule_.scale_free)) rows_.make_room_for_norms();
  launch(call);
  for (const int64_t i : call.taking_part) {
    call.rows[i].bump_version();
    if (measures) call.rows[i].set_squares({});
  }
}

}  // namespace gradops
