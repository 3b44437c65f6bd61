// A step on a GPU: tables on the device that are linked when something moved, and one launch.
//
// Nothing here waits for the device, and a steady step copies nothing to it.
#pragma once

#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/work_table.h"
#include "device_table.h"
#include "step_backend.h"

namespace gradops {

class CudaStep : public StepBackend {
 public:
  explicit CudaStep(at::Device device);

  void forget_rows() override { rows_.clear(); }
  void step(const StepCall& call) override;
  std::string description() const override { return form_.description; }

 private:
  void link(const StepCall& call);
  void cut();
  void measure_params(const StepCall& call, const cuda::StepArgs& args);
  cuda::StepArgs args_of(const StepCall& call);
  std::vector<cuda::GroupRule> rules_of(const StepCall& call) const;
  const float* scalar(const std::optional<at::Tensor>& value);
  void hold_for_graph();

  at::Device device_;
  cuda::DeviceLimits limits_;
  cuda::LaunchForm form_;
  std::vector<cuda::TensorRow> rows_;  // every row, as the device has it; one never seen with a gradient is empty
  std::vector<int64_t> layouts_;       // of the rows that have one, end to end

  DeviceTable<cuda::TensorRow> row_table_;
  DeviceTable<int64_t> layout_table_;
  DeviceTable<cuda::Piece> pieces_;
  DeviceTable<int32_t> chunk_pieces_, block_chunks_;
  DeviceTable<const void*> grads_;
  DeviceTable<cuda::GroupRule> groups_;
  cuda::WorkTable table_ = {};
  cuda::Workspace work_ = {};
  std::vector<at::Tensor> work_memory_;
  std::vector<at::Tensor> in_graphs_;  // memory that a captured graph uses
  std::vector<at::Tensor> held_;       // what this step alone has copied to the device
};

}  // namespace gradops
