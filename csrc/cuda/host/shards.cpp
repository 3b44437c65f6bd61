#include "cuda/host/shards.h"

#include <ATen/record_function.h>

namespace gradops {
namespace {

// How each line is merged, as Python's gathering has it: norms, maxima, sums.
std::string kinds_of(const cuda::ShardLines& lines) {
  return std::string("nms") + (lines.params ? "n" : "") + (lines.units ? "nn" : "");
}

}  // namespace

void DeviceShards::link(std::span<const cuda::TensorRow> rows, std::span<const ParamRow> params) {
  std::vector<cuda::TensorRow> own(rows.begin(), rows.end());
  std::vector<uint8_t> is_one_unit;
  for (size_t i = 0; i < own.size(); ++i) {
    own[i].first_chunk = static_cast<int32_t>(i);
    own[i].chunks = 1;
    is_one_unit.push_back(params[i].is_one_unit());
  }
  std::vector<cuda::TensorRow> whole = own;
  for (size_t i = 0; i < whole.size(); ++i) whole[i].numel = params[i].whole_numel();
  own_ = own_rows_.update(std::move(own), device_);
  whole_ = whole_rows_.update(std::move(whole), device_);
  work_.is_one_unit = is_one_unit_.update(std::move(is_one_unit), device_);
  const int64_t count = static_cast<int64_t>(rows.size());
  if (count == row_count_) return;
  row_count_ = count;
  work_memory_.clear();
  work_.grads = allocate<GradStats>(count, device_, work_memory_);
  work_.params = allocate<GradStats>(count, device_, work_memory_);
  work_.takes_part = allocate<const void*>(count, device_, work_memory_);
}

cuda::StepCall DeviceShards::deciding(const cuda::StepCall& call, const cuda::TensorRow* rows) const {
  cuda::StepCall deciding = call;
  deciding.args.table.rows = rows;
  deciding.args.table.chunk_count = static_cast<int32_t>(row_count_);
  deciding.args.work.grad_sums = work_.grads;
  return deciding;
}

at::Tensor DeviceShards::new_records(int64_t lines, cuda::ShardWork& work) const {
  const at::Tensor records = at::empty({lines, row_count_ + 1}, at::TensorOptions(at::kDouble).device(device_));
  work.records = records.mutable_data_ptr<double>();
  return records;
}

void DeviceShards::gather(const Exchange& exchange, const at::Tensor& records, const std::string& kinds,
                          double norm_type, cuda::ShardWork& work) {
  RECORD_USER_SCOPE("gradops.exchange");
  const Exchange::Gathered all = exchange.gather(records, kinds, norm_type);
  work.gathered = all.numbers.const_data_ptr<double>();
  work.counts = all.counts.defined() ? all.counts.const_data_ptr<bool>() : nullptr;
  work.processes = static_cast<int32_t>(all.numbers.size(0));
  held_.insert(held_.end(), {records, all.numbers, all.counts});
}

void DeviceShards::step(const Step& step, const Exchange& exchange) {
  held_.clear();
  const cuda::StepArgs& args = step.call.args;
  const bool units = args.units.rows != nullptr;
  cuda::ShardWork work = work_;
  work.lines = {.params = step.compares_params, .units = units};
  step.kernels.measure_shards(step.form, step.call, step.stream);
  const at::Tensor records = new_records(work.lines.count(), work);
  cuda::record_rows(step.form, step.call, work, step.stream);
  gather(exchange, records, kinds_of(work.lines), args.policies.norm_type, work);
  cuda::merge_rows(step.call, work, step.stream);
  cuda::StepCall whole = deciding(step.call, whole_);
  whole.args.work.param_sums = work.params;
  if (step.any_grad) {
    step.kernels.plan_shards(step.form, whole, step.stream);
    step.kernels.update_shards(step.form, deciding(step.call, own_), step.stream);
  } else {
    cuda::decide_without_grads(step.form, whole, work, step.stream);
  }
  if (args.policies.track_updates || units) exchange_updates(step, whole, exchange, work);
}

void DeviceShards::exchange_updates(const Step& step, const cuda::StepCall& whole, const Exchange& exchange,
                                    cuda::ShardWork work) {
  const at::Tensor records = new_records(cuda::kUpdateLines, work);
  cuda::record_updates(step.form, step.call, work, step.any_grad, step.stream);
  gather(exchange, records, "nnm", 2.0, work);
  cuda::write_shared_updates(whole, work, step.stream);
}

void DeviceShards::captured() {
  own_rows_.captured();
  whole_rows_.captured();
  is_one_unit_.captured();
  in_graphs_.insert(in_graphs_.end(), work_memory_.begin(), work_memory_.end());
  in_graphs_.insert(in_graphs_.end(), held_.begin(), held_.end());
}

}  // namespace gradops
