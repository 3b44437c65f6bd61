// Lists of tensors, as the operators get them, as rows that the kernels take.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "cpu/multi_tensor.h"
#include "host/update_rules.h"

namespace gradops {

// One row for each tensor of `leader`, in whose memory order elements are walked.
struct TensorLists {
  explicit TensorLists(at::TensorList leader);

  // Takes one tensor for each row into its `slot`. Raises ValueError or RuntimeError, naming `role` and the row, for
  // one that does not fit or, where it is to be written, must not be.
  void set(Slot slot, at::TensorList tensors, const char* role, bool writable);

  at::TensorList leader;
  std::vector<cpu::TensorRow> views;
  std::vector<std::vector<int64_t>> orders;
  std::vector<std::unique_ptr<cpu::Layout>> layouts;
};

// The tensors of an update by _update_, which are checked. `moments` are those that the rule's variant uses, all of one
// after all of another.
struct UpdateLists {
  at::TensorList params, grads, moments, steps, scalars;

  TensorLists rows(const UpdateRuleInfo& rule, int variant) const;
  void bump_versions() const;
};

// The numbers of an update by _update_ but for its lr. Raises ValueError for others than the rule has.
HyperParams hyper_params(const UpdateRuleInfo& rule, at::ArrayRef<double> own, double weight_decay, bool decoupled,
                         bool maximize, double l1);

// What _update_ multiplies each of the gradients by, as float64 on the device; undefined for a rule that does not scale
// them. Raises ValueError where they are missing, or more than the rule takes.
at::Tensor grad_factors_of(const UpdateRuleInfo& rule, const std::optional<at::Tensor>& given, at::TensorList params);

void bump_versions(at::TensorList tensors);

}  // namespace gradops
