#include "host/tensor_lists.h"

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

void TensorLists::set(cpu::TensorView cpu::TensorRow::* member, at::TensorList tensors, const char* role,
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

TensorLists AdamLists::rows() const {
  TensorLists rows(params);
  rows.set(&cpu::TensorRow::param, params, "params", true);
  rows.set(&cpu::TensorRow::grad, grads, "grads", false);
  rows.set(&cpu::TensorRow::exp_avg, exp_avgs, "exp_avgs", true);
  rows.set(&cpu::TensorRow::exp_avg_sq, exp_avg_sqs, "exp_avg_sqs", true);
  if (!max_exp_avg_sqs.empty()) {
    rows.set(&cpu::TensorRow::max_exp_avg_sq, max_exp_avg_sqs, "max_exp_avg_sqs", true);
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

void AdamLists::bump_versions() const {
  for (const at::TensorList list : {params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps})
    gradops::bump_versions(list);
}

void bump_versions(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace gradops
