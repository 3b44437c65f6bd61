#include "host/tensor_lists.h"

#include <algorithm>

#include "host/checks.h"

namespace gradops {

namespace {

// One for each of these parameters.
void check_numbers(const char* role, at::TensorList numbers, at::TensorList params) {
  TORCH_CHECK_VALUE(numbers.size() == params.size(), role, " must have one tensor a parameter, ", params.size(),
                    ", got ", numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) {
    TORCH_CHECK_VALUE(numbers[i].numel() == 1 && numbers[i].scalar_type() == at::kFloat, role,
                      " must be single Floats");
    TORCH_CHECK_VALUE(numbers[i].device() == params[i].device(), role, " must be on the device of params, ",
                      params[i].device(), ", got ", numbers[i].device());
  }
}

}  // namespace

TensorLists::TensorLists(at::TensorList leader) : leader(leader), views(leader.size()) {
  for (size_t i = 0; i < leader.size(); ++i) {
    TORCH_CHECK_VALUE(leader[i].device() == leader[0].device(), "gradops: tensor 0 is on ", leader[0].device(),
                      ", tensor ", i, " on ", leader[i].device(), "; call once for each device");
    orders.push_back(memory_order(leader[i]));
    views[i].numel = leader[i].numel();
  }
}

void TensorLists::set(Slot slot, at::TensorList tensors, const char* role, bool writable) {
  TORCH_CHECK_VALUE(tensors.size() == leader.size(), role, " must have one tensor a parameter, ", leader.size(),
                    ", got ", tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string name = std::to_string(i);
    check_like(tensors[i], leader[i], role, name);
    if (writable) check_writable(tensors[i], role, name);
    layouts.push_back(layout_in(orders[i], tensors[i]));
    void* data = writable ? tensors[i].data_ptr() : const_cast<void*>(tensors[i].const_data_ptr());
    views[i][slot] = {data, layouts.back().get(), *kernel_dtype(tensors[i].scalar_type())};
  }
}

TensorLists UpdateLists::rows(const UpdateRuleInfo& rule, int variant) const {
  TensorLists rows(params);
  rows.set(kParam, params, "params", true);
  rows.set(kGrad, grads, "grads", false);
  size_t used = 0;
  for (int moment = 0; moment < rule.moments; ++moment) used += rule.uses(variant, moment);
  TORCH_CHECK_VALUE(moments.size() == used * params.size(), "moments must have ", used, " tensors a parameter, ",
                    used * params.size(), ", got ", moments.size());
  for (int moment = 0, begin = 0; moment < rule.moments; ++moment) {
    if (!rule.uses(variant, moment)) continue;
    const std::string role = "moment " + std::to_string(moment);
    rows.set(moment_slot(moment), moments.slice(begin, params.size()), role.c_str(), true);
    begin += static_cast<int>(params.size());
  }
  check_numbers("steps", steps, params);
  check_numbers("scalars", scalars, rule.scalars == 0 ? at::TensorList() : params);
  return rows;
}

void UpdateLists::bump_versions() const {
  for (const at::TensorList list : {params, moments, steps, scalars}) gradops::bump_versions(list);
}

HyperParams hyper_params(const UpdateRuleInfo& rule, at::ArrayRef<double> own, double weight_decay, bool decoupled,
                         bool maximize, double l1) {
  TORCH_CHECK_VALUE(static_cast<int>(own.size()) == rule.hypers, "hyper must have ", rule.hypers, " numbers for ",
                    rule.name, ", got ", own.size());
  HyperParams hyper;
  std::copy(own.begin(), own.end(), hyper.own);
  hyper.weight_decay = weight_decay;
  hyper.l1 = l1;
  hyper.decay_kind = decoupled ? WeightDecay::kDecoupled : WeightDecay::kL2;
  hyper.variant = rule.variant(hyper);
  hyper.maximize = maximize;
  return hyper;
}

at::Tensor grad_factors_of(const UpdateRuleInfo& rule, const std::optional<at::Tensor>& given, at::TensorList params) {
  const bool fits = rule.grad_factor == nullptr
                        ? !given.has_value()
                        : given.has_value() && given->numel() == static_cast<int64_t>(params.size());
  TORCH_CHECK_VALUE(fits,
                    "grad_factors must have one value a parameter for a rule that scales gradients, and none else");
  if (!given.has_value() || params.empty()) return {};
  return given->to(params[0].device(), at::kDouble, /*non_blocking=*/true).contiguous();
}

void bump_versions(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace gradops
