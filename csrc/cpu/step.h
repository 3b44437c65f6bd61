// A step on the CPU: measure, decide, update, write what was measured.
#pragma once

#include <vector>

#include "cpu/shared_stats.h"
#include "cpu/units.h"
#include "host/step_backend.h"
#include "host/update_rules.h"

namespace gradops {

class CpuStep : public StepBackend {
 public:
  explicit CpuStep(const UpdateRuleInfo& rule) : rule_(rule) {}

  void forget_rows() override {}  // a plan with other rows says that they moved
  void step(const StepCall& call) override;
  std::string description() const override;

 private:
  struct Outcome {
    double grad_norm = 0.0;
    StepDecision decision;
    bool found_inf = false;
    bool guarded = false;
  };

  void cut_into_chunks(const StepCall& call);
  void measure(const StepCall& call, const Unscaling& unscaling, const cpu::Norm& norm);
  void measure_params(const StepCall& call);
  Outcome decide_step(const StepCall& call, const Unscaling& unscaling, const cpu::Norm& norm,
                      const SpikeGuardState& history, bool found_inf) const;
  RowStep row_step(const StepCall& call, int64_t row, const StepDecision& decision, double group_lr) const;
  void plan_updates(const StepCall& call, const StepDecision& decision, double lr_factor);
  void count_update(ParamRow& row, const HyperParams& hyper) const;
  void update(const StepCall& call, const StepDecision& decision);
  void learn_updates(const StepCall& call, float& smallest_coef);
  void write_scalars(const StepCall& call, const Outcome& outcome, const SpikeGuardState& history, float loss_scale);
  void write_rows(const StepCall& call, const StepDecision& decision);
  void write_updates(const StepCall& call, bool skip);

  const UpdateRuleInfo& rule_;
  cpu::ChunkTable table_;
  std::vector<ChunkStats> grad_chunks_;
  std::vector<ChunkStats> param_chunks_;
  std::vector<ChunkStats> moved_chunks_;
  RowStats stats_;
  std::vector<PowerSum> moved_;  // one a row, as stats_.params after the update
  std::vector<cpu::RowUpdate> updates_;
  std::vector<uint8_t> capped_;
  UnitClip units_;
};

}  // namespace gradops
