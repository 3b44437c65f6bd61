#include "host/tensor_lists.h"

#include <algorithm>

#include "host/checks.h"

namespace gradops {

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
  TORCH_CHECK_VALUE(steps.size() == params.size(), "steps must have one tensor a parameter, ", params.size(), ", got ",
                    steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    TORCH_CHECK_VALUE(steps[i].numel() == 1 && steps[i].scalar_type() == at::kFloat, "steps must be single Floats");
    TORCH_CHECK_VALUE(steps[i].device() == params[i].device(), "steps must be on the device of params, ",
                      params[i].device(), ", got ", steps[i].device());
  }
  return rows;
}

void UpdateLists::bump_versions() const {
  for (const at::TensorList list : {params, moments, steps}) gradops::bump_versions(list);
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

void bump_versions(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace gradops
