// Lists of tensors, as the operators get them, as rows that the kernels take.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "cpu/multi_tensor.h"

namespace gradops {

// One row for each tensor of `leader`, in whose memory order elements are walked.
struct TensorLists {
  explicit TensorLists(at::TensorList leader);

  // Takes one tensor for each row as its `member`. Raises ValueError or RuntimeError, naming `role` and the row, for
  // one that does not fit or, where it is to be written, must not be.
  void set(cpu::TensorView cpu::TensorRow::* member, at::TensorList tensors, const char* role, bool writable);

  at::TensorList leader;
  std::vector<cpu::TensorRow> views;
  std::vector<std::vector<int64_t>> orders;
  std::vector<std::unique_ptr<cpu::Layout>> layouts;
};

// The tensors of an update by adam_step_, which are checked.
struct AdamLists {
  at::TensorList params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps;

  TensorLists rows() const;
  void bump_versions() const;
};

void bump_versions(at::TensorList tensors);

}  // namespace gradops
