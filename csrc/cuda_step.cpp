#include "cuda_step.h"

#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cstring>

#include "cuda_device.h"

namespace gradops {
namespace {

// The address of gradients without elements: null would say that there is none.
const char kNoElements = 0;

// Appends a layout as the kernels read it; its place, plus one, or 0 where there is none.
size_t append_layout(const cpu::Layout* layout, std::vector<int64_t>& layouts) {
  if (layout == nullptr) return 0;
  const size_t place = layouts.size();
  layouts.push_back(static_cast<int64_t>(layout->sizes.size()));
  for (size_t dim = 0; dim < layout->sizes.size(); ++dim) {
    layouts.push_back(layout->sizes[dim]);
    layouts.push_back(layout->strides[dim]);
  }
  return place + 1;
}

cuda::Dtype dtype_of(cpu::Dtype dtype) {
  switch (dtype) {
    case cpu::Dtype::kFloat32:
      return cuda::Dtype::kFloat32;
    case cpu::Dtype::kBFloat16:
      return cuda::Dtype::kBFloat16;
    case cpu::Dtype::kFloat16:
      return cuda::Dtype::kFloat16;
  }
  __builtin_unreachable();
}

// A row's tensors on both sides, in the order in which their layouts are appended.
constexpr std::pair<cpu::TensorView cpu::TensorRow::*, cuda::View cuda::TensorRow::*> kTensors[] = {
    {&cpu::TensorRow::param, &cuda::TensorRow::param},
    {&cpu::TensorRow::grad, &cuda::TensorRow::grad},
    {&cpu::TensorRow::exp_avg, &cuda::TensorRow::exp_avg},
    {&cpu::TensorRow::exp_avg_sq, &cuda::TensorRow::exp_avg_sq},
    {&cpu::TensorRow::max_exp_avg_sq, &cuda::TensorRow::max_exp_avg_sq},
};

template <class T>
T* allocate(size_t count, at::Device device, std::vector<at::Tensor>& memory) {
  memory.push_back(at::zeros({static_cast<int64_t>(count * sizeof(T))}, at::TensorOptions(at::kByte).device(device)));
  return static_cast<T*>(memory.back().mutable_data_ptr());
}

}  // namespace

at::Tensor to_device(const void* bytes, size_t size, at::Device device) {
  TORCH_CHECK(!capturing(device),
              "gradops: this step would copy to the GPU where parameters, gradients or param_groups now are, which a "
              "graph cannot capture; take a step like it before the capture");
  const int64_t length = static_cast<int64_t>(size);
  const at::Tensor staging = at::empty({length}, at::TensorOptions(at::kByte).pinned_memory(device.is_cuda()));
  if (size > 0) std::memcpy(staging.mutable_data_ptr(), bytes, size);
  const at::Tensor result = at::empty({length}, at::TensorOptions(at::kByte).device(device));
  return result.copy_(staging, /*non_blocking=*/true);
}

CudaStep::CudaStep(at::Device device) : device_(device) {
  const c10::DeviceGuard guard(device_);
  limits_ = cuda::device_limits(device_.index());
}

void CudaStep::link(const StepCall& call) {
  std::vector<cuda::TensorRow> rows = rows_;
  rows.resize(call.rows.size());
  for (const int64_t i : call.taking_part) {
    const cpu::TensorRow& view = call.views[i];
    cuda::TensorRow& row = rows[i];
    for (const auto& [from, to] : kTensors) row.*to = {(view.*from).data, nullptr, dtype_of((view.*from).dtype)};
    row.grad.data = nullptr;  // it comes with each step
    row.step = call.rows[i].step();
    row.numel = view.numel;
    row.group = static_cast<int32_t>(call.rows[i].group());
  }
  const bool recut = !std::equal(rows.begin(), rows.end(), rows_.begin(), rows_.end(),
                                 [](const auto& a, const auto& b) { return a.numel == b.numel; });
  // Layouts are few; all are written again when one changes. A row that takes no part keeps the place of its own.
  layouts_.clear();
  std::vector<std::pair<const int64_t**, size_t>> places;
  for (const int64_t i : call.taking_part) {
    for (const auto& [from, to] : kTensors) {
      const size_t place = append_layout((call.views[i].*from).layout, layouts_);
      if (place != 0) places.emplace_back(&(rows[i].*to).layout, place - 1);
    }
  }
  if (!places.empty()) {
    const int64_t* base = layout_table_.update(layouts_, device_);
    for (const auto& [pointer, place] : places) *pointer = base + place;
  }
  rows_ = std::move(rows);
  if (recut) {
    cut();
    for (ParamRow& row : call.rows) row.forget_squares();  // they lay in the memory that is gone
  }
  table_.rows = row_table_.update(rows_, device_);
}

void CudaStep::cut() {
  cuda::WorkTableHost host = cuda::cut(rows_);
  form_ = cuda::choose_form(limits_, host.chunk_count());
  const size_t pieces = host.pieces.size();
  const size_t chunks = host.chunk_count();
  table_.row_count = static_cast<int32_t>(rows_.size());
  table_.chunk_count = host.chunk_count();
  table_.block_chunks = block_chunks_.update(cuda::even_shares(host.chunk_pieces, form_.blocks), device_);
  table_.chunk_pieces = chunk_pieces_.update(std::move(host.chunk_pieces), device_);
  table_.pieces = pieces_.update(std::move(host.pieces), device_);
  work_memory_.clear();
  work_.piece_stats = allocate<ChunkStats>(pieces, device_, work_memory_);
  work_.grad_sums = allocate<GradStats>(chunks, device_, work_memory_);
  work_.param_sums = allocate<GradStats>(chunks, device_, work_memory_);
  work_.row_rules = allocate<cuda::RowRule>(rows_.size(), device_, work_memory_);
  work_.inputs = allocate<cuda::StepInputs>(1, device_, work_memory_);
}

std::vector<cuda::GroupRule> CudaStep::rules_of(const StepCall& call) const {
  std::vector<cuda::GroupRule> rules;
  for (const GroupHyper& group : call.groups) {
    cuda::GroupRule& rule = rules.emplace_back();
    rule.hyper = group.hyper;
    if (!group.lr.defined()) continue;
    const at::ScalarType type = group.lr.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble, "gradops: a tensor lr must be Float or Double, got ", type);
    rule.lr = group.lr.const_data_ptr();
    rule.lr_is_double = type == at::kDouble;
  }
  return rules;
}

const float* CudaStep::scalar(const std::optional<at::Tensor>& value) {
  if (!value.has_value()) return nullptr;
  held_.push_back(value->to(device_, at::kFloat, /*non_blocking=*/true));
  return held_.back().const_data_ptr<float>();
}

cuda::StepArgs CudaStep::args_of(const StepCall& call) {
  const StepSettings& settings = call.settings;
  const StepBuffers& buffers = call.buffers;
  cuda::StepArgs args;
  args.table = table_;
  args.work = work_;
  args.stats = {buffers.scalars.data_ptr<float>(), buffers.counters.data_ptr<int64_t>(),
                buffers.norms.data_ptr<float>(),   buffers.abs_max.data_ptr<float>(),
                buffers.nonfinite.data_ptr<int64_t>(), buffers.capped.data_ptr<bool>()};
  args.rules.max_norm = settings.max_norm;
  args.rules.norm_type = settings.norm_type;
  args.rules.clip_value = static_cast<float>(settings.clip_value);
  args.rules.relative_step = settings.relative_step;
  args.rules.moves_loss_scale = settings.loss_scale_rule.has_value();
  if (args.rules.moves_loss_scale) args.rules.loss_scale = *settings.loss_scale_rule;
  args.loss_scale = scalar(call.scaling.loss_scale);
  args.found_inf = scalar(call.scaling.found_inf);
  args.grads_scaled = call.scaling.grads_scaled;
  return args;
}

void CudaStep::measure_params(const StepCall& call, const cuda::StepArgs& args) {
  std::vector<uint8_t> marked(call.rows.size(), 0);
  bool any = false;
  for (const int64_t i : call.taking_part) any |= marked[i] = !call.rows[i].squares_known();
  if (!any) return;
  RECORD_USER_SCOPE("gradops.param_stats");
  held_.push_back(to_device(marked.data(), marked.size(), device_));
  cuda::param_stats(form_, args, held_.back().const_data_ptr<uint8_t>(), current_stream(device_));
}

void CudaStep::hold_for_graph() {
  row_table_.captured();
  layout_table_.captured();
  pieces_.captured();
  chunk_pieces_.captured();
  block_chunks_.captured();
  grads_.captured();
  groups_.captured();
  in_graphs_.insert(in_graphs_.end(), work_memory_.begin(), work_memory_.end());
  in_graphs_.insert(in_graphs_.end(), held_.begin(), held_.end());
}

void CudaStep::step(const StepCall& call) {
  const c10::DeviceGuard guard(device_);
  held_.clear();
  link(call);
  std::vector<const void*> grads(call.rows.size(), nullptr);
  for (const int64_t i : call.taking_part) grads[i] = call.views[i].numel == 0 ? &kNoElements : call.views[i].grad.data;
  std::vector<cuda::GroupRule> rules = rules_of(call);

  cuda::StepArgs args = args_of(call);
  if (call.settings.caps()) measure_params(call, args);
  if (!cuda::travels_inline(form_, grads.size(), rules.size())) {
    args.grads = grads_.update(grads, device_);
    args.groups = groups_.update(rules, device_);
  }
  {
    RECORD_USER_SCOPE("gradops.one_pass_step");
    cuda::one_pass_step(form_, {args, grads, rules}, current_stream(device_));
  }
  if (capturing(device_)) {
    hold_for_graph();
    const bool all_tensors = std::all_of(call.groups.begin(), call.groups.end(),
                                         [](const GroupHyper& group) { return group.lr.defined(); });
    if (!all_tensors) {
      TORCH_WARN_ONCE("gradops: a float lr is captured as it is now, and the graph's replays will not follow a "
                      "scheduler; pass lr=torch.tensor(...) on the parameters' device");
    }
  }
  for (const int64_t i : call.taking_part) {
    call.rows[i].bump_version();
    if (call.settings.caps()) call.rows[i].set_squares({});
  }
}

}  // namespace gradops
