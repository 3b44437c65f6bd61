// What one step of a StepPlan gets, and who carries it out on the device that the parameters are on.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "host/param_row.h"
#include "host/step_scalars.h"
#include "host/update_rules.h"
#include "math/ema.h"
#include "math/loss_scale.h"
#include "math/relative_step.h"
#include "math/spike_guard.h"
#include "math/update.h"

namespace gradops {

// What the optimizer's attributes say about one step; checked by gradops/settings.py.
struct StepSettings {
  double max_norm = INFINITY;
  double norm_type = 2.0;
  double clip_value = INFINITY;
  RelativeStepPolicy relative_step;
  std::optional<LossScalePolicy> loss_scale_policy;
  std::optional<SpikeGuardPolicy> guard;
  bool track_updates = false;
  double l1 = 0.0;   // of groups that have none of their own
  bool agc = false;  // adaptive gradient clipping: max_norm is relative to the weights', unit by unit
  std::optional<EmaPolicy> ema;

  // What the norm of all gradients together is clipped to.
  double max_grad_norm() const { return agc ? INFINITY : max_norm; }
  bool caps() const { return !std::isinf(relative_step.cap); }
  // Whether a step by the rule compares with the sizes of the parameters before it.
  bool measures_params(const UpdateRuleInfo& rule) const { return caps() || rule.grad_factor != nullptr; }
  bool gathers_squares(const UpdateRuleInfo& rule) const { return measures_params(rule) || track_updates; }
};

// The live buffers behind `optimizer.stats`.
struct StepBuffers {
  at::Tensor scalars;   // float32: see StepScalar
  at::Tensor counters;  // int64: see StepCounter
  at::Tensor norms;     // float32, like abs_max; one row a parameter, as in those that follow
  at::Tensor abs_max;
  at::Tensor nonfinite;     // int64
  at::Tensor capped;        // bool
  at::Tensor update_ratio;  // float32, like param_rms; both are written by steps that track updates
  at::Tensor param_rms;
};

// A param group's hyper-parameters.
struct GroupHyper {
  HyperParams hyper;
  at::Tensor lr;            // defined where the rate is a tensor on the parameters' device, which alone reads it
  bool clips_units = true;  // whether adaptive gradient clipping is for this group
};

// What multiplied the loss, and what others have done to the gradients since.
struct GradScaling {
  std::optional<at::Tensor> loss_scale;  // one element; none for 1
  bool grads_scaled = true;              // whether the gradients still carry it
  std::optional<at::Tensor> found_inf;   // one element, not 0 if somebody saw an inf or NaN in them before
};

struct StepCall {
  std::span<ParamRow> rows;
  std::span<const cpu::TensorRow> views;  // one a row; those of rows without a gradient may be stale
  std::span<const int64_t> taking_part;   // rows with a gradient, in order; at least one, but for an exchange
  std::span<const GroupHyper> groups;
  bool moved;  // whether any view but the gradients' addresses, or who takes part, differs from the last step
  const StepSettings& settings;
  const GradScaling& scaling;
  const StepBuffers& buffers;
  const Exchange* exchange;  // the processes that have other parts of the parameters; null where there are none
};

class StepBackend {
 public:
  virtual ~StepBackend() = default;

  // The rows are others than at the last step.
  virtual void forget_rows() = 0;

  // One step; everything has been checked.
  virtual void step(const StepCall& call) = 0;

  // What ran the last step, for people.
  virtual std::string description() const = 0;
};

// Whether this build has a backend for the device, and for which devices it has one ("cpu and cuda").
bool has_backend(at::Device device);
const char* backend_devices();
std::unique_ptr<StepBackend> make_backend(at::Device device, const UpdateRuleInfo& rule);

// How a large step by the rule would be launched on the device, for people.
std::string launch_form(at::Device device, const UpdateRuleInfo& rule);

// Whether steps may be one cooperative launch, for tables made from now on; returns what held before.
bool allow_one_launch(bool allowed);

}  // namespace gradops
