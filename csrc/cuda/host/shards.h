// What a step on a GPU has more where processes share its rows: the rows as wholes, and the exchange.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cuda/host/table.h"
#include "cuda/shards.h"
#include "host/exchange.h"
#include "host/param_row.h"

namespace gradops {

class DeviceShards {
 public:
  explicit DeviceShards(at::Device device) : device_(device) {}

  // Takes this process's rows as the device has them, and the parameters that they are of.
  void link(std::span<const cuda::TensorRow> rows, std::span<const ParamRow> params);

  // What is launched for a step.
  struct Step {
    const cuda::RuleKernels& kernels;
    const cuda::LaunchForm& form;
    const cuda::StepCall& call;
    bool any_grad;         // whether this process has any
    bool compares_params;  // whether the sums of the stored parameters decide
    cuda::Stream stream;
  };

  // One step: one exchange, one more where updates are tracked or gradients clipped by units. Nothing waits for the
  // device but the exchange, on it.
  void step(const Step& step, const Exchange& exchange);

  // A graph has been captured that uses the tables: they stay as they are, as long as this does.
  void captured();

 private:
  // `call` as the update takes it, with the whole rows' sums; as planning takes it, with their elements, too.
  cuda::StepCall deciding(const cuda::StepCall& call, const cuda::TensorRow* rows) const;
  // Sends `work.records`, of so many lines, and has `work` name what came; held until the next step.
  void gather(const Exchange& exchange, const at::Tensor& records, const std::string& kinds, double norm_type,
              cuda::ShardWork& work);
  at::Tensor new_records(int64_t lines, cuda::ShardWork& work) const;
  void exchange_updates(const Step& step, const cuda::StepCall& whole, const Exchange& exchange, cuda::ShardWork work);

  at::Device device_;
  DeviceTable<cuda::TensorRow> own_rows_, whole_rows_;
  DeviceTable<uint8_t> is_one_unit_;
  const cuda::TensorRow* own_ = nullptr;    // rows of one chunk, with this process's elements
  const cuda::TensorRow* whole_ = nullptr;  // with all
  int64_t row_count_ = -1;
  cuda::ShardWork work_;
  std::vector<at::Tensor> work_memory_;
  std::vector<at::Tensor> held_;
  std::vector<at::Tensor> in_graphs_;
};

}  // namespace gradops
