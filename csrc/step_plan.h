// The host path of a step: what the optimizer's tensors are, checked at each step against what they were.
//
// Built once for an optimizer. A step walks the parameters and compares identity, pointer, dtype, layout and the
// presence of a gradient with what the plan knows; only what moved is linked anew.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "math/loss_scale.h"
#include "math/relative_step.h"
#include "param_row.h"

namespace gradops {

// What the optimizer's attributes say about one step; checked by gradops/settings.py.
struct StepSettings {
  double max_norm = INFINITY;
  double norm_type = 2.0;
  double clip_value = INFINITY;
  RelativeStepRule relative_step;
  std::optional<LossScaleRule> loss_scale_rule;
};

// The live buffers behind `optimizer.stats`.
struct StepBuffers {
  at::Tensor scalars;   // float32: see StepPlan::Scalar
  at::Tensor counters;  // int64: see StepPlan::Counter
  at::Tensor norms;     // float32, like abs_max; one row a parameter, as in those that follow
  at::Tensor abs_max;
  at::Tensor nonfinite;  // int64
  at::Tensor capped;     // bool
};

class StepPlan {
 public:
  enum Scalar { kGradNorm, kClipCoef, kFoundInf, kLossScaleUsed, kLossScale, kScalarCount };
  enum Counter { kStepsTaken, kStepsSkipped, kGrowthTracker, kCounterCount };

  // Takes the parameters of all groups; `names` and the rows of `buffers` have one entry a parameter. What the plan
  // knew of a parameter is kept. Raises RuntimeError for one that cannot be stepped; the plan is then as it was.
  void bind_params(const py::list& param_groups, const std::vector<std::string>& names, StepBuffers buffers);

  // Takes the optimizer's `state` dict, as it is now.
  void bind_state(const py::dict& state);

  // Indices of the parameters that have a gradient but no state. Raises RuntimeError if a gradient does not fit.
  std::vector<int64_t> params_without_state();

  // One step. False, and nothing has changed, if groups or state are not those that were bound.
  //
  // `loss_scale` (one element) is what the loss was multiplied by, `grads_scaled` whether the gradients still are, and
  // `found_inf` (one element) is not 0 if somebody saw an inf or NaN in them before.
  bool step(const py::list& param_groups, const py::dict& state, const StepSettings& settings,
            const std::optional<at::Tensor>& loss_scale, bool grads_scaled, const std::optional<at::Tensor>& found_inf);

  // Forgets the gathered sizes of the parameters, after edits that no counter shows.
  void refresh();

 private:
  struct Outcome {
    GradStats all;
    double grad_norm = 0.0;
    StepDecision decision;
  };

  bool same_params(const py::list& param_groups) const;
  bool same_state(const py::dict& state) const;
  enum class Followed { kReady, kStateMissing, kStateMoved };
  Followed follow_params();
  Outcome measure(const StepSettings& settings, float inv_scale, bool found_inf);
  void measure_params();
  void plan_updates(const std::vector<AdamHyper>& hypers, const RelativeStepRule& relative_step);
  void update(const StepDecision& decision, bool gather_squares);
  void write_stats(const StepSettings& settings, const Outcome& outcome, float loss_scale);

  std::vector<ParamRow> rows_;
  std::vector<cpu::TensorRow> views_;
  std::vector<int64_t> group_sizes_;
  std::vector<std::pair<PyObject*, int64_t>> state_order_;  // the state dict's values in order; their rows or -1
  std::vector<int64_t> taking_part_;                        // rows with a gradient, in order
  std::vector<int64_t> numels_;                             // of those, as the table was built for
  cpu::ChunkTable table_;
  std::vector<ChunkStats> grad_chunks_;
  std::vector<ChunkStats> param_chunks_;
  std::vector<GradStats> row_stats_;
  std::vector<cpu::RowUpdate> updates_;
  std::vector<uint8_t> capped_;
  StepBuffers buffers_;
};

}  // namespace gradops
