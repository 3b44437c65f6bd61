// torch.ops.gradops on a GPU. Tables are made for each call; nothing waits for the device, save for a scalar that is on
// another one.
#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <numeric>

#include "cuda/activation_stats.h"
#include "cuda/host/rows.h"
#include "cuda/launch.h"
#include "host/checks.h"
#include "host/step_scalars.h"
#include "host/tensor_lists.h"

namespace gradops {
namespace {

// What one call launches, with all that must live until it is launched.
class DeviceCall {
 public:
  DeviceCall(const TensorLists& lists, at::Device device) : device_(device), guard_(device), rows_(device, nullptr) {
    link(lists, std::vector<cuda::TensorRow>(lists.views.size()));
  }

  DeviceCall(const TensorLists& lists, at::TensorList steps, at::TensorList scalars, at::Device device)
      : device_(device), guard_(device), rows_(device, nullptr) {
    std::vector<cuda::TensorRow> rows(lists.views.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i].step = steps[i].data_ptr<float>();
    for (size_t i = 0; i < scalars.size(); ++i) rows[i].scalar = scalars[i].data_ptr<float>();
    link(lists, std::move(rows));
  }

  const float* scalar(const std::optional<at::Tensor>& value) {
    if (!value.has_value()) return nullptr;
    held_.push_back(value->to(device_, at::kFloat, /*non_blocking=*/true));
    return held_.back().const_data_ptr<float>();
  }

  // Tensors of `dtype` that the kernels write.
  at::Tensor output(int64_t count, at::ScalarType dtype) const {
    return at::zeros({count}, at::TensorOptions(dtype).device(device_));
  }

  cuda::StepCall call() const { return {args, {}, {}}; }
  const cuda::LaunchForm& form() const { return rows_.form(); }
  cuda::Stream stream() const { return current_stream(device_); }

  void set_group(const cuda::GroupRule& rule) {
    held_.push_back(to_device(&rule, sizeof(rule), device_));
    args.groups = static_cast<const cuda::GroupRule*>(held_.back().const_data_ptr());
  }

  cuda::StepArgs args;

 private:
  void link(const TensorLists& lists, std::vector<cuda::TensorRow> rows) {
    std::vector<int64_t> all(rows.size());
    std::iota(all.begin(), all.end(), 0);
    rows_.link(std::move(rows), lists.views, all);
    const std::vector<const void*> grads = DeviceRows::grads(lists.views, all);
    held_.push_back(to_device(grads.data(), grads.size() * sizeof(grads[0]), device_));
    args.grads = static_cast<const void* const*>(held_.back().const_data_ptr());
    args.table = rows_.table();
    args.work = rows_.work();
    args.grads_scaled = true;
    set_group({});
  }

  at::Device device_;
  c10::DeviceGuard guard_;
  DeviceRows rows_;
  std::vector<at::Tensor> held_;
};

struct Measured {
  at::Tensor scalars, norms, abs_max, nonfinite;

  at::Tensor scalar(StepScalar which) const { return scalars[which].clone(); }
};

struct Measuring {
  std::optional<at::Tensor> grad_scale = std::nullopt;
  double clip_value = INFINITY;
  double max_norm = INFINITY;
  double norm_type = 2.0;
  cuda::ScaleBy scale_by = cuda::ScaleBy::kNothing;
};

Measured measure(at::TensorList grads, const Measuring& how) {
  TORCH_CHECK_VALUE(how.norm_type > 0, "norm_type must be positive, got ", how.norm_type);
  const bool writes = how.scale_by != cuda::ScaleBy::kNothing;
  TensorLists lists(grads);
  lists.set(kGrad, grads, "grads", writes);
  DeviceCall call(lists, grads.empty() ? how.grad_scale->device() : grads[0].device());
  const int64_t count = static_cast<int64_t>(grads.size());
  const Measured measured{call.output(5, at::kFloat), call.output(count, at::kFloat), call.output(count, at::kFloat),
                          call.output(count, at::kLong)};
  call.args.stats = {measured.scalars.data_ptr<float>(),
                     nullptr,
                     measured.norms.data_ptr<float>(),
                     measured.abs_max.data_ptr<float>(),
                     measured.nonfinite.data_ptr<int64_t>(),
                     nullptr,
                     nullptr,
                     nullptr};
  call.args.policies.max_norm = how.max_norm;
  call.args.policies.norm_type = how.norm_type;
  call.args.policies.clip_value = static_cast<float>(how.clip_value);
  call.args.loss_scale = call.scalar(how.grad_scale);
  cuda::grad_stats(call.form(), call.call(), how.scale_by, call.stream());
  if (writes) bump_versions(grads);
  return measured;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> grad_stats(at::TensorList grads,
                                                                      const std::optional<at::Tensor>& grad_scale,
                                                                      std::optional<double> clip_value,
                                                                      double norm_type) {
  const Measured measured =
      measure(grads, {.grad_scale = grad_scale, .clip_value = clip_value.value_or(INFINITY), .norm_type = norm_type});
  return {measured.scalar(kGradNorm), measured.norms, measured.abs_max, measured.nonfinite};
}

at::Tensor clip_grad_norm_(at::TensorList grads, double max_norm, double norm_type) {
  TORCH_CHECK_VALUE(max_norm >= 0, "max_norm must not be negative, got ", max_norm);
  const cuda::ScaleBy scale_by = std::isinf(max_norm) ? cuda::ScaleBy::kNothing : cuda::ScaleBy::kClipCoef;
  return measure(grads, {.max_norm = max_norm, .norm_type = norm_type, .scale_by = scale_by}).scalar(kGradNorm);
}

at::Tensor unscale_(at::TensorList grads, const at::Tensor& grad_scale) {
  return measure(grads, {.grad_scale = grad_scale, .norm_type = INFINITY, .scale_by = cuda::ScaleBy::kInvScale})
      .scalar(kFoundInf);
}

void update_(const std::string& rule_name, at::TensorList params, at::TensorList grads, at::TensorList moments,
             at::TensorList steps, at::TensorList scalars, const at::Tensor& lr, at::ArrayRef<double> own,
             const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& clip_coef,
             const std::optional<at::Tensor>& found_inf, std::optional<double> clip_value, double weight_decay,
             bool decoupled, bool maximize, double l1, const std::optional<at::Tensor>& grad_factors) {
  const UpdateRuleInfo& rule = update_rule(rule_name);
  cuda::GroupRule group{hyper_params(rule, own, weight_decay, decoupled, maximize, l1)};
  if (params.empty()) return;
  const UpdateLists tensors{params, grads, moments, steps, scalars};
  const TensorLists lists = tensors.rows(rule, group.hyper.variant);
  const at::Device device = params[0].device();
  DeviceCall call(lists, steps, scalars, device);
  const at::Tensor factors = grad_factors_of(rule, grad_factors, params);
  if (factors.defined()) call.args.grad_factors = factors.const_data_ptr<double>();
  const at::Tensor rate = lr.to(device, at::kDouble, /*non_blocking=*/true);
  group.lr = rate.const_data_ptr();
  group.lr_is_double = true;
  call.set_group(group);
  call.args.policies.clip_value = static_cast<float>(clip_value.value_or(INFINITY));
  call.args.loss_scale = call.scalar(grad_scale);
  call.args.clip_coef = call.scalar(clip_coef);
  call.args.found_inf = call.scalar(found_inf);
  rule.cuda->update(call.form(), call.call(), call.stream());
  tensors.bump_versions();
}

void update_loss_scale_(at::Tensor& scale, at::Tensor& growth_tracker, const at::Tensor& found_inf,
                        double growth_factor, double backoff_factor, int64_t growth_interval, double min_scale,
                        double max_scale) {
  check_loss_scale(scale, growth_tracker);
  const c10::DeviceGuard guard(scale.device());
  const at::Tensor seen = found_inf.to(scale.device(), at::kFloat, /*non_blocking=*/true);
  cuda::update_loss_scale(scale.data_ptr<float>(), growth_tracker.data_ptr<int64_t>(), seen.const_data_ptr<float>(),
                          {growth_factor, backoff_factor, growth_interval, min_scale, max_scale},
                          current_stream(scale.device()));
  bump_versions({scale, growth_tracker});
}

std::tuple<at::Tensor, at::Tensor> activation_stats(const at::Tensor& x, double near_zero) {
  check_activations(x, near_zero);
  const c10::DeviceGuard guard(x.device());
  const at::TensorOptions on_device = at::TensorOptions().device(x.device());
  const std::unique_ptr<cpu::Layout> layout = layout_in(memory_order(x), x);
  std::vector<int64_t> words;
  append_layout(layout.get(), words);
  const at::Tensor layout_there =
      words.empty() ? at::Tensor() : to_device(words.data(), words.size() * sizeof(words[0]), x.device());
  const int64_t strip_bytes = cuda::strip_count(x.numel()) * int64_t{sizeof(cuda::Strip)};
  const at::Tensor strips = at::empty({strip_bytes}, on_device.dtype(at::kByte));
  const at::Tensor totals = at::zeros({int64_t{sizeof(cuda::ActivationTotals)}}, on_device.dtype(at::kByte));
  const at::Tensor measures = at::empty({3}, on_device.dtype(at::kFloat));
  const at::Tensor counts = at::empty({4 + kBins}, on_device.dtype(at::kLong));
  cuda::ActivationArgs args = {};
  args.x = {const_cast<void*>(x.const_data_ptr()), nullptr, *kernel_dtype(x.scalar_type())};
  if (!words.empty()) args.x.layout = static_cast<const int64_t*>(layout_there.const_data_ptr());
  args.numel = x.numel();
  args.near_zero = static_cast<float>(near_zero);
  args.strips = static_cast<cuda::Strip*>(strips.mutable_data_ptr());
  args.totals = static_cast<cuda::ActivationTotals*>(totals.mutable_data_ptr());
  args.measures = measures.mutable_data_ptr<float>();
  args.counts = counts.mutable_data_ptr<int64_t>();
  cuda::activation_stats(args, cuda::activation_blocks(x.numel()), current_stream(x.device()));
  return {measures, counts};
}

}  // namespace

// On the tests' emulator a GPU is the CPU.
#ifdef GRADOPS_EMULATE
#define GRADOPS_GPU CPU
#else
#define GRADOPS_GPU CUDA
#endif

TORCH_LIBRARY_IMPL(gradops, GRADOPS_GPU, m) {
  m.impl("_update_", &update_);
  m.impl("activation_stats", &activation_stats);
  m.impl("grad_stats", &grad_stats);
  m.impl("clip_grad_norm_", &clip_grad_norm_);
  m.impl("unscale_", &unscale_);
  m.impl("update_loss_scale_", &update_loss_scale_);
}

}  // namespace gradops
