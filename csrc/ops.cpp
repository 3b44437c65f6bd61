// torch.ops.gradops: the phases of a step as functional operators over lists of tensors, for torch.compile and for
// people who build their own optimizer. Documented, with their fake kernels, in gradops/ops.py.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/multi_tensor.h"
#include "math/loss_scale.h"

namespace gradops {
namespace {

// Rows for lists of tensors, with what they own. Elements are walked in the memory order of `leader`'s tensors.
struct Rows {
  std::vector<cpu::TensorRow> views;
  std::vector<std::vector<int64_t>> orders;
  std::vector<std::unique_ptr<cpu::Layout>> layouts;
  cpu::ChunkTable table;

  explicit Rows(at::TensorList leader) : views(leader.size()) {
    for (size_t i = 0; i < leader.size(); ++i) {
      orders.push_back(memory_order(leader[i]));
      views[i].numel = leader[i].numel();
      table.add_row(static_cast<int32_t>(i), leader[i].numel());
    }
  }

  void set(cpu::TensorView cpu::TensorRow::* member, at::TensorList tensors, at::TensorList leader, const char* role,
           bool writable) {
    TORCH_CHECK_VALUE(tensors.size() == leader.size(), role, " must have one tensor a parameter, ", leader.size(),
                      ", got ", tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const std::string name = std::to_string(i);
      check_like(tensors[i], leader[i], role, name);
      if (writable) check_writable(tensors[i], role, name);
      layouts.push_back(layout_in(orders[i], tensors[i]));
      void* data = writable ? tensors[i].data_ptr() : const_cast<void*>(tensors[i].const_data_ptr());
      views[i].*member = {data, layouts.back().get(), *kernel_dtype(tensors[i].scalar_type())};
    }
  }
};

void bump(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) tensor.unsafeGetTensorImpl()->bump_version();
}

GradRule grad_rule(const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value) {
  GradRule rule;
  if (grad_scale.has_value()) rule.inv_scale = inv_loss_scale(grad_scale->item<float>());
  if (clip_value.has_value()) rule.clip_value = static_cast<float>(*clip_value);
  return rule;
}

// Statistics of each row, and of all together.
std::vector<GradStats> row_stats(const Rows& rows, const GradRule& rule, double norm_type, GradStats& all) {
  TORCH_CHECK_VALUE(norm_type > 0, "norm_type must be positive, got ", norm_type);
  const cpu::Norm norm{norm_type_of(norm_type), norm_type};
  std::vector<ChunkStats> chunks(rows.table.chunks().size());
  cpu::chunk_stats(rows.table, rows.views, &cpu::TensorRow::grad, rule, norm, chunks);
  std::vector<GradStats> stats(rows.views.size());
  rows.table.for_each_row([&](int64_t row, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) stats[row].merge(chunks[i], norm_type);
    all.merge(stats[row], norm_type);
  });
  return stats;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> grad_stats(at::TensorList grads,
                                                                      const std::optional<at::Tensor>& grad_scale,
                                                                      std::optional<double> clip_value,
                                                                      double norm_type) {
  Rows rows(grads);
  rows.set(&cpu::TensorRow::grad, grads, grads, "grads", false);
  const GradRule rule = grad_rule(grad_scale, clip_value);
  GradStats all;
  const std::vector<GradStats> stats = row_stats(rows, rule, norm_type, all);
  const int64_t count = static_cast<int64_t>(grads.size());
  at::Tensor norms = at::empty({count}, at::kFloat);
  at::Tensor abs_max = at::empty({count}, at::kFloat);
  at::Tensor nonfinite = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    norms.data_ptr<float>()[i] = static_cast<float>(stats[i].norm(norm_type, rule.clip_value));
    abs_max.data_ptr<float>()[i] = stats[i].abs_max();
    nonfinite.data_ptr<int64_t>()[i] = stats[i].nonfinite;
  }
  return {at::scalar_tensor(all.norm(norm_type, rule.clip_value), at::kFloat), norms, abs_max, nonfinite};
}

void adam_step_(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
                at::TensorList max_exp_avg_sqs, at::TensorList steps, const at::Tensor& lr,
                const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& clip_coef,
                const std::optional<at::Tensor>& found_inf, std::optional<double> clip_value, double beta1,
                double beta2, double eps, double weight_decay, bool decoupled, bool maximize) {
  Rows rows(params);
  rows.set(&cpu::TensorRow::param, params, params, "params", true);
  rows.set(&cpu::TensorRow::grad, grads, params, "grads", false);
  rows.set(&cpu::TensorRow::exp_avg, exp_avgs, params, "exp_avgs", true);
  rows.set(&cpu::TensorRow::exp_avg_sq, exp_avg_sqs, params, "exp_avg_sqs", true);
  const bool amsgrad = !max_exp_avg_sqs.empty();
  if (amsgrad) rows.set(&cpu::TensorRow::max_exp_avg_sq, max_exp_avg_sqs, params, "max_exp_avg_sqs", true);
  TORCH_CHECK_VALUE(steps.size() == params.size(), "steps must have one tensor a parameter, ", params.size(), ", got ",
                    steps.size());
  for (const at::Tensor& step : steps) {
    TORCH_CHECK_VALUE(step.numel() == 1 && step.scalar_type() == at::kFloat, "steps must be single Floats");
  }
  const GradRule rule = grad_rule(grad_scale, clip_value);
  StepDecision decision{rule.inv_scale, rule.clip_value, clip_coef.has_value() ? clip_coef->item<float>() : 1.0f,
                        found_inf.has_value() && found_inf->item<double>() != 0.0};
  if (decision.skip) return;
  const WeightDecay decay = decoupled ? WeightDecay::kDecoupled : WeightDecay::kL2;
  const AdamHyper hyper{lr.item<double>(), beta1, beta2, eps, weight_decay, decay, amsgrad, maximize};
  std::vector<cpu::RowUpdate> updates;
  for (const at::Tensor& step : steps) {
    *step.data_ptr<float>() += 1.0f;
    updates.push_back({adam_rule(hyper, hyper.lr, step.item<double>()), decay});
  }
  cpu::adam_step(rows.table, rows.views, updates, decision, {});
  for (const at::TensorList list : {params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps}) bump(list);
}

at::Tensor clip_grad_norm_(at::TensorList grads, double max_norm, double norm_type) {
  TORCH_CHECK_VALUE(max_norm >= 0, "max_norm must not be negative, got ", max_norm);
  Rows rows(grads);
  rows.set(&cpu::TensorRow::grad, grads, grads, "grads", true);
  GradStats all;
  row_stats(rows, GradRule{}, norm_type, all);
  const double norm = all.norm(norm_type, INFINITY);
  const float coef = decide(all, norm, max_norm, GradRule{}, false).clip_coef;
  if (coef < 1.0f) {
    cpu::scale_grads(rows.table, rows.views, coef);
    bump(grads);
  }
  return at::scalar_tensor(norm, at::kFloat);
}

at::Tensor unscale_(at::TensorList grads, const at::Tensor& grad_scale) {
  Rows rows(grads);
  rows.set(&cpu::TensorRow::grad, grads, grads, "grads", true);
  const GradRule rule = grad_rule(grad_scale, std::nullopt);
  GradStats all;
  row_stats(rows, rule, INFINITY, all);
  cpu::scale_grads(rows.table, rows.views, rule.inv_scale);
  bump(grads);
  return at::scalar_tensor(all.nonfinite != 0 ? 1.0 : 0.0, at::kFloat);
}

void update_loss_scale_(at::Tensor& scale, at::Tensor& growth_tracker, const at::Tensor& found_inf,
                        double growth_factor, double backoff_factor, int64_t growth_interval, double min_scale,
                        double max_scale) {
  TORCH_CHECK_VALUE(scale.scalar_type() == at::kFloat && scale.numel() == 1, "scale must be a single Float");
  TORCH_CHECK_VALUE(growth_tracker.scalar_type() == at::kLong && growth_tracker.numel() == 1,
                    "growth_tracker must be a single Long");
  const LossScaleRule rule{growth_factor, backoff_factor, growth_interval, min_scale, max_scale};
  const LossScaleState state{scale.item<float>(), growth_tracker.item<int64_t>()};
  const LossScaleState next = next_loss_scale(state, rule, found_inf.item<double>() != 0.0);
  scale.fill_(next.scale);
  growth_tracker.fill_(next.growth_tracker);
}

}  // namespace

TORCH_LIBRARY(gradops, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "grad_stats(Tensor[] grads, Tensor? grad_scale=None, float? clip_value=None, float norm_type=2.0)"
      " -> (Tensor grad_norm, Tensor norms, Tensor abs_max, Tensor nonfinite)",
      tags);
  m.def(
      "adam_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor lr, *, Tensor? grad_scale=None,"
      " Tensor? clip_coef=None, Tensor? found_inf=None, float? clip_value=None, float beta1=0.9, float beta2=0.999,"
      " float eps=1e-8, float weight_decay=0.0, bool decoupled=False, bool maximize=False) -> ()",
      tags);
  m.def("clip_grad_norm_(Tensor(a!)[] grads, float max_norm, float norm_type=2.0) -> Tensor", tags);
  m.def("unscale_(Tensor(a!)[] grads, Tensor grad_scale) -> Tensor", tags);
  m.def(
      "update_loss_scale_(Tensor(a!) scale, Tensor(b!) growth_tracker, Tensor found_inf, *, float growth_factor=2.0,"
      " float backoff_factor=0.5, int growth_interval=2000, float min_scale=6.103515625e-05,"
      " float max_scale=16777216.0) -> ()",
      tags);
}

TORCH_LIBRARY_IMPL(gradops, CPU, m) {
  m.impl("grad_stats", &grad_stats);
  m.impl("adam_step_", &adam_step_);
  m.impl("clip_grad_norm_", &clip_grad_norm_);
  m.impl("unscale_", &unscale_);
  m.impl("update_loss_scale_", &update_loss_scale_);
}

}  // namespace gradops
