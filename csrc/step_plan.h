// The host path of a step: what the optimizer's tensors are, checked at each step against what they were.
//
// Built once for an optimizer. A step walks the parameters and compares identity, pointer, dtype, layout and the
// presence of a gradient with what the plan knows; only what moved is linked anew.
#pragma once

#include <string>
#include <vector>

#include "step_backend.h"

namespace gradops {

class StepPlan {
 public:
  // Takes the parameters of all groups; `names` and the rows of `buffers` have one entry a parameter. What the plan
  // knew of a parameter is kept. Raises RuntimeError for one that cannot be stepped; the plan is then as it was.
  void bind_params(const py::list& param_groups, const std::vector<std::string>& names, StepBuffers buffers);

  // Takes the optimizer's `state` dict, as it is now.
  void bind_state(const py::dict& state);

  // Indices of the parameters that have a gradient but no state. Raises RuntimeError if a gradient does not fit.
  std::vector<int64_t> params_without_state();

  // One step. False, and nothing has changed, if groups or state are not those that were bound.
  bool step(const py::list& param_groups, const py::dict& state, const StepSettings& settings,
            const GradScaling& scaling);

  // What runs the steps, for people.
  std::string description() const { return backend_ == nullptr ? "" : backend_->description(); }

  // Forgets what it knows of the parameters' values, after edits that no counter shows.
  void refresh();

 private:
  bool same_params(const py::list& param_groups) const;
  bool same_state(const py::dict& state) const;
  enum class Followed { kReady, kStateMissing, kStateMoved };
  Followed follow_params();

  std::vector<ParamRow> rows_;
  std::vector<cpu::TensorRow> views_;
  std::vector<int64_t> group_sizes_;
  std::vector<std::pair<PyObject*, int64_t>> state_order_;  // the state dict's values in order; their rows or -1
  std::vector<int64_t> taking_part_;                        // rows with a gradient, in order
  at::Device device_ = at::kCPU;                            // of every row
  std::unique_ptr<StepBackend> backend_;
  StepBuffers buffers_;
};

}  // namespace gradops
