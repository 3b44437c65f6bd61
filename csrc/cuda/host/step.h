// A step on a GPU: tables on the device that are linked when something moved, and one launch; a few where processes
// share the parameters.
//
// Nothing here waits for the device, and a steady step copies nothing to it.
#pragma once

#include <string>
#include <vector>

#include "cuda/host/rows.h"
#include "cuda/host/shards.h"
#include "cuda/host/units.h"
#include "host/step_backend.h"
#include "host/update_rules.h"

namespace gradops {

class CudaStep : public StepBackend {
 public:
  CudaStep(at::Device device, const UpdateRuleInfo& rule);

  void forget_rows() override { rows_.clear(); }
  void step(const StepCall& call) override;
  std::string description() const override;

 private:
  bool link(const StepCall& call);
  void link_units(const StepCall& call);
  void launch(const StepCall& call);
  // Whether the last step was several launches on every device.
  bool several() const { return agc_ || shared_; }
  const cuda::LaunchForm& form() const { return several() ? rows_.form_of_several() : rows_.form(); }
  void measure_params(const StepCall& call, const cuda::StepArgs& args);
  cuda::StepArgs args_of(const StepCall& call);
  std::vector<cuda::GroupRule> rules_of(const StepCall& call) const;
  const float* scalar(const std::optional<at::Tensor>& value);
  void captured(const StepCall& call);

  at::Device device_;
  const UpdateRuleInfo& rule_;
  DeviceRows rows_;
  std::vector<Units> units_of_rows_;
  std::vector<bool> clips_units_;  // of each group, as units_ was linked
  DeviceUnits units_;
  DeviceShards shards_;
  bool agc_ = false;     // whether the last step clipped by units
  bool shared_ = false;  // whether other processes had other parts of its parameters
  DeviceTable<const void*> grads_;
  DeviceTable<cuda::GroupRule> groups_;
  std::vector<at::Tensor> in_graphs_;  // what a captured graph uses beside the tables
  std::vector<at::Tensor> held_;       // what this step alone has copied to the device
};

}  // namespace gradops
