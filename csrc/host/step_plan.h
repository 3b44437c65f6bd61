// The host path of a step: what the optimizer's tensors are, checked at each step against what they were.
//
// Built once for an optimizer. A step walks the parameters and compares identity, pointer, dtype, layout and the
// presence of a gradient with what the plan knows; only what moved is linked anew.
#pragma once

#include <string>
#include <vector>

#include "host/group_hyper.h"
#include "host/step_backend.h"
#include "host/update_rules.h"

namespace gradops {

// What the plan reads of an update rule's groups and state: gradops/update_rule.py.
struct RuleKeys {
  StateKeys state;
  std::vector<std::string> hyper;  // "betas.0" is the first of betas
  std::string decoupled;           // the flag of a group; empty for a rule whose weight decay is of one kind
  bool always_decouples = false;   // and which it is
};

class StepPlan {
 public:
  // Raises ValueError for a rule that this build has not, or that has others than these.
  StepPlan(const std::string& rule, const RuleKeys& keys);
  StepPlan(const StepPlan&) = delete;

  // Takes the parameters of all groups, which are to be on the device of `buffers`; `names` and the rows of `buffers`
  // have one entry a parameter. What the plan knew of a parameter is kept. Raises RuntimeError for one that is to be
  // trained, or has a gradient, and cannot be stepped; the plan is then as it was. Others are checked when they have.
  // With an `exchange` parameters may be DTensors, and every process of their meshes must call step().
  void bind_params(py::handle param_groups, const std::vector<std::string>& names, StepBuffers buffers,
                   std::shared_ptr<Exchange> exchange);

  // Takes the optimizer's `state`, as it is now.
  void bind_state(py::handle states);

  // Indices of the parameters that have a gradient but no state. Raises RuntimeError if one of these, or its gradient,
  // cannot be stepped.
  std::vector<int64_t> params_without_state();

  // One step. False, and nothing has changed, if groups or state are not those that were bound, or if a tensor cannot
  // be stepped with them.
  bool step(py::handle param_groups, py::handle states, const StepSettings& settings, const GradScaling& scaling);

  // What runs the steps, for people.
  std::string description() const { return backend_ == nullptr ? "" : backend_->description(); }

  // Forgets what it knows of the parameters' values, after edits that no counter shows.
  void refresh();

 private:
  // A parameter's state as it was bound; of those of rows, which keep it alive, where a dict's entries are.
  struct BoundState {
    PyObject* state;
    int64_t row;  // -1 for none
    const void* keys;
  };

  // Has the rows of DTensors take their local tensors for as long as it lives.
  class ShardsInHand {
   public:
    explicit ShardsInHand(StepPlan& plan);
    ShardsInHand(const ShardsInHand&) = delete;
    ~ShardsInHand();

   private:
    StepPlan& plan_;
  };

  bool same_params(const py::object& groups) const;
  bool same_state(const py::dict& states) const;
  enum class Followed { kReady, kStateMissing, kStateMoved };
  Followed follow_params();
  void set_views(int64_t row, const HyperParams& hyper);
  bool follow_views(const std::vector<GroupHyper>& hypers);

  const UpdateRuleInfo& rule_;
  const StateKeys state_keys_;
  const GroupReader reader_;
  std::vector<ParamRow> rows_;
  std::vector<cpu::TensorRow> views_;
  // Whether the backend's rows are out of date, and for which rows and variants they were made.
  bool moved_ = true;
  std::vector<int64_t> planned_rows_;
  std::vector<int> planned_variants_;
  std::vector<int64_t> group_sizes_;
  std::vector<BoundState> state_order_;  // in the order of the optimizer's state
  std::vector<int64_t> taking_part_;     // rows with a gradient, in order
  at::Device device_ = at::kCPU;         // of every row that takes part
  std::unique_ptr<StepBackend> backend_;
  StepBuffers buffers_;
  std::shared_ptr<Exchange> exchange_;
};

}  // namespace gradops
