// torch.ops.gradops on the CPU.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <numeric>

#include "cpu/activation_stats.h"
#include "host/checks.h"
#include "host/tensor_lists.h"
#include "math/loss_scale.h"

namespace gradops {
namespace {

at::TensorOptions on_cpu(at::ScalarType dtype) { return at::TensorOptions(dtype).device(at::kCPU); }

cpu::ChunkTable chunks_of(const TensorLists& rows) {
  cpu::ChunkTable table;
  for (size_t i = 0; i < rows.views.size(); ++i) table.add_row(static_cast<int32_t>(i), rows.views[i].numel);
  return table;
}

Unscaling unscaling_of(const std::optional<at::Tensor>& grad_scale, std::optional<double> clip_value) {
  Unscaling unscaling;
  if (grad_scale.has_value()) unscaling.inv_scale = inv_loss_scale(grad_scale->item<float>());
  if (clip_value.has_value()) unscaling.clip_value = static_cast<float>(*clip_value);
  return unscaling;
}

// Statistics of each row, and of all together.
std::vector<GradStats> row_stats(const TensorLists& rows, const cpu::ChunkTable& table, const Unscaling& unscaling,
                                 double norm_type, GradStats& all) {
  TORCH_CHECK_VALUE(norm_type > 0, "norm_type must be positive, got ", norm_type);
  const cpu::Norm norm{norm_type_of(norm_type), norm_type};
  std::vector<ChunkStats> chunks(table.chunks().size());
  cpu::chunk_stats(table, rows.views, kGrad, unscaling, norm, chunks);
  std::vector<GradStats> stats(rows.views.size());
  table.for_each_row([&](int64_t row, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) stats[row].merge(chunks[i], norm_type);
    all.merge(stats[row], norm_type);
  });
  return stats;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> grad_stats(at::TensorList grads,
                                                                      const std::optional<at::Tensor>& grad_scale,
                                                                      std::optional<double> clip_value,
                                                                      double norm_type) {
  TensorLists rows(grads);
  rows.set(kGrad, grads, "grads", false);
  const cpu::ChunkTable table = chunks_of(rows);
  const Unscaling unscaling = unscaling_of(grad_scale, clip_value);
  GradStats all;
  const std::vector<GradStats> stats = row_stats(rows, table, unscaling, norm_type, all);
  const int64_t count = static_cast<int64_t>(grads.size());
  at::Tensor norms = at::empty({count}, on_cpu(at::kFloat));
  at::Tensor abs_max = at::empty({count}, on_cpu(at::kFloat));
  at::Tensor nonfinite = at::empty({count}, on_cpu(at::kLong));
  for (int64_t i = 0; i < count; ++i) {
    norms.data_ptr<float>()[i] = static_cast<float>(stats[i].norm(norm_type, unscaling.clip_value));
    abs_max.data_ptr<float>()[i] = stats[i].abs_max();
    nonfinite.data_ptr<int64_t>()[i] = stats[i].nonfinite;
  }
  return {at::scalar_tensor(all.norm(norm_type, unscaling.clip_value), on_cpu(at::kFloat)), norms, abs_max, nonfinite};
}

void update_(const std::string& rule_name, at::TensorList params, at::TensorList grads, at::TensorList moments,
             at::TensorList steps, at::TensorList scalars, const at::Tensor& lr, at::ArrayRef<double> own,
             const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& clip_coef,
             const std::optional<at::Tensor>& found_inf, std::optional<double> clip_value, double weight_decay,
             bool decoupled, bool maximize, double l1, const std::optional<at::Tensor>& grad_factors) {
  const UpdateRuleInfo& rule = update_rule(rule_name);
  HyperParams hyper = hyper_params(rule, own, weight_decay, decoupled, maximize, l1);
  const UpdateLists lists{params, grads, moments, steps, scalars};
  const TensorLists rows = lists.rows(rule, hyper.variant);
  const at::Tensor factors = grad_factors_of(rule, grad_factors, params);
  const Unscaling unscaling = unscaling_of(grad_scale, clip_value);
  const StepDecision decision{unscaling.inv_scale, unscaling.clip_value,
                              clip_coef.has_value() ? clip_coef->item<float>() : 1.0f,
                              found_inf.has_value() && found_inf->item<double>() != 0.0};
  if (decision.skip) return;
  hyper.lr = lr.item<double>();
  std::vector<cpu::RowUpdate> updates;
  for (size_t i = 0; i < steps.size(); ++i) {
    float& step = *steps[i].data_ptr<float>();
    float* scalar = scalars.empty() ? nullptr : scalars[i].data_ptr<float>();
    step += 1.0f;
    const double factor = factors.defined() ? factors.const_data_ptr<double>()[i] : 1.0;
    updates.push_back({rule.row_rule(hyper, {hyper.lr, step, scalar == nullptr ? 0.0 : *scalar, factor})});
    if (scalar != nullptr) *scalar = rule.next_scalar(hyper, step, *scalar);
  }
  cpu::update(chunks_of(rows), rows.views, rule.update_chunk, updates, decision, {});
  lists.bump_versions();
}

at::Tensor clip_grad_norm_(at::TensorList grads, double max_norm, double norm_type) {
  TORCH_CHECK_VALUE(max_norm >= 0, "max_norm must not be negative, got ", max_norm);
  TensorLists rows(grads);
  rows.set(kGrad, grads, "grads", true);
  const cpu::ChunkTable table = chunks_of(rows);
  GradStats all;
  row_stats(rows, table, Unscaling{}, norm_type, all);
  const double norm = all.norm(norm_type, INFINITY);
  const float coef = decide(all, norm, max_norm, Unscaling{}, false).clip_coef;
  if (coef < 1.0f) {
    cpu::scale_grads(table, rows.views, coef);
    bump_versions(grads);
  }
  return at::scalar_tensor(norm, on_cpu(at::kFloat));
}

at::Tensor unscale_(at::TensorList grads, const at::Tensor& grad_scale) {
  TensorLists rows(grads);
  rows.set(kGrad, grads, "grads", true);
  const cpu::ChunkTable table = chunks_of(rows);
  const Unscaling unscaling = unscaling_of(grad_scale, std::nullopt);
  GradStats all;
  row_stats(rows, table, unscaling, INFINITY, all);
  cpu::scale_grads(table, rows.views, unscaling.inv_scale);
  bump_versions(grads);
  return at::scalar_tensor(all.nonfinite != 0 ? 1.0 : 0.0, on_cpu(at::kFloat));
}

void update_loss_scale_(at::Tensor& scale, at::Tensor& growth_tracker, const at::Tensor& found_inf,
                        double growth_factor, double backoff_factor, int64_t growth_interval, double min_scale,
                        double max_scale) {
  check_loss_scale(scale, growth_tracker);
  const LossScalePolicy policy{growth_factor, backoff_factor, growth_interval, min_scale, max_scale};
  const LossScaleState state{scale.item<float>(), growth_tracker.item<int64_t>()};
  const LossScaleState next = next_loss_scale(state, policy, found_inf.item<double>() != 0.0);
  scale.fill_(next.scale);
  growth_tracker.fill_(next.growth_tracker);
}

std::tuple<at::Tensor, at::Tensor> activation_stats(const at::Tensor& x, double near_zero) {
  check_activations(x, near_zero);
  const std::unique_ptr<cpu::Layout> layout = layout_in(memory_order(x), x);
  const cpu::TensorView view{const_cast<void*>(x.const_data_ptr()), layout.get(), *kernel_dtype(x.scalar_type())};
  const cpu::ActivationStats stats = cpu::activation_stats(view, x.numel(), static_cast<float>(near_zero));
  const Moments& moments = stats.moments;
  at::Tensor measures = at::full({3}, NAN, on_cpu(at::kFloat));
  if (moments.n > 0) {
    float* values = measures.data_ptr<float>();
    values[0] = static_cast<float>(moments.mean);
    values[1] = static_cast<float>(std::sqrt(moments.m2 / moments.n));
    values[2] = bits_float(stats.abs_max_bits);
  }
  at::Tensor counts = at::empty({4 + kBins}, on_cpu(at::kLong));
  int64_t* values = counts.data_ptr<int64_t>();
  values[0] = x.numel();
  values[1] = stats.near_zero;
  values[2] = std::accumulate(stats.histogram.begin(), stats.histogram.begin() + kBinsPerSign, int64_t{0});
  values[3] = stats.histogram[kBins];
  std::copy_n(stats.histogram.begin(), kBins, values + 4);
  return {measures, counts};
}

}  // namespace

TORCH_LIBRARY_IMPL(gradops, CPU, m) {
  m.impl("_update_", &update_);
  m.impl("activation_stats", &activation_stats);
  m.impl("grad_stats", &grad_stats);
  m.impl("clip_grad_norm_", &clip_grad_norm_);
  m.impl("unscale_", &unscale_);
  m.impl("update_loss_scale_", &update_loss_scale_);
}

}  // namespace gradops
