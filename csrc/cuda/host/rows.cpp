#include "cuda/host/rows.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>

namespace gradops {
namespace {

// The address of gradients without elements: null would say that there is none.
const char kNoElements = 0;

}  // namespace

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

cuda::Stream current_stream(at::Device device) {
  if (!device.is_cuda()) return nullptr;
  const c10::impl::VirtualGuardImpl guard(device.type());
  return static_cast<cuda::Stream>(guard.getStreamNativeHandle(guard.getStream(device)));
}

at::Tensor to_device(const void* bytes, size_t size, at::Device device) {
  TORCH_CHECK(
      !cuda::capturing(current_stream(device)),
      "gradops: this would copy to the GPU where tensors or param_groups now are, which a graph cannot capture; "
      "take a step like it before the capture");
  const int64_t length = static_cast<int64_t>(size);
  const at::Tensor staging =
      at::empty({length}, at::TensorOptions(at::kByte).device(at::kCPU).pinned_memory(device.is_cuda()));
  if (size > 0) std::memcpy(staging.mutable_data_ptr(), bytes, size);
  const at::Tensor result = at::empty({length}, at::TensorOptions(at::kByte).device(device));
  return result.copy_(staging, /*non_blocking=*/true);
}

DeviceRows::DeviceRows(at::Device device, const cuda::RuleKernels* kernels) : device_(device) {
  const c10::DeviceGuard guard(device);
  limits_ = cuda::device_limits(device.index(), kernels);
}

bool DeviceRows::link(std::vector<cuda::TensorRow> rows, std::span<const cpu::TensorRow> views,
                      std::span<const int64_t> taking_part) {
  for (const int64_t i : taking_part) {
    const cpu::TensorRow& view = views[i];
    cuda::TensorRow& row = rows[i];
    for (int slot = 0; slot < kSlots; ++slot)
      row.views[slot] = {view.views[slot].data, nullptr, view.views[slot].dtype};
    row[kGrad].data = nullptr;  // it comes with each step
    row.numel = view.numel;
  }
  const bool recut =
      table_.block_chunks == nullptr || !std::equal(rows.begin(), rows.end(), rows_.begin(), rows_.end(),
                                                    [](const auto& a, const auto& b) { return a.numel == b.numel; });
  // Layouts are few; all are written again when one changes. A row that takes no part keeps the place of its own.
  layouts_.clear();
  std::vector<std::pair<const int64_t**, size_t>> places;
  for (const int64_t i : taking_part) {
    for (int slot = 0; slot < kSlots; ++slot) {
      const size_t place = append_layout(views[i].views[slot].layout, layouts_);
      if (place != 0) places.emplace_back(&rows[i].views[slot].layout, place - 1);
    }
  }
  if (!places.empty()) {
    const int64_t* base = layout_table_.update(layouts_, device_);
    for (const auto& [pointer, place] : places) *pointer = base + place;
  }
  rows_ = std::move(rows);
  if (recut) cut();
  table_.compensated =
      std::any_of(rows_.begin(), rows_.end(), [](const auto& row) { return row[kCompensation].data != nullptr; });
  table_.averaged = std::any_of(rows_.begin(), rows_.end(), [](const auto& row) { return row[kEma].data != nullptr; });
  if (table_.averaged && work_.ema_weights == nullptr) {
    work_.ema_weights = allocate<float>(rows_.size(), device_, work_memory_);
  }
  table_.rows = row_table_.update(rows_, device_);
  return recut;
}

void DeviceRows::cut() {
  cuda::WorkTableHost host = cuda::cut(rows_);
  form_ = cuda::choose_form(limits_, host.chunk_count());
  cuda::DeviceLimits without_grids = limits_;
  without_grids.cooperative = false;
  form_of_several_ = cuda::choose_form(without_grids, host.chunk_count());
  const size_t pieces = host.pieces.size();
  const size_t chunks = host.chunk_count();
  table_.row_count = static_cast<int32_t>(rows_.size());
  table_.chunk_count = host.chunk_count();
  table_.block_chunks = block_chunks_.update(cuda::even_shares(host.chunk_pieces, form_.blocks), device_);
  const std::vector<int32_t> shares = cuda::even_shares(host.chunk_pieces, form_of_several_.blocks);
  chunks_of_several_ = block_chunks_of_several_.update(shares, device_);
  table_.chunk_pieces = chunk_pieces_.update(std::move(host.chunk_pieces), device_);
  table_.pieces = pieces_.update(std::move(host.pieces), device_);
  work_memory_.clear();
  work_ = {};
  piece_count_ = pieces;
  work_.piece_stats = allocate<ChunkStats>(pieces, device_, work_memory_);
  work_.grad_sums = allocate<GradStats>(chunks, device_, work_memory_);
  work_.param_sums = allocate<GradStats>(chunks, device_, work_memory_);
  work_.row_rules = allocate<RowRule>(rows_.size(), device_, work_memory_);
  work_.inputs = allocate<cuda::StepInputs>(1, device_, work_memory_);
}

cuda::WorkTable DeviceRows::table_of_several() const {
  cuda::WorkTable table = table_;
  table.block_chunks = chunks_of_several_;
  return table;
}

void DeviceRows::make_room_for_updates() {
  make_room_for_norms();
  if (work_.piece_moves != nullptr) return;
  work_.piece_moves = allocate<ChunkStats>(piece_count_, device_, work_memory_);
  work_.moved_sums = allocate<GradStats>(table_.chunk_count, device_, work_memory_);
}

void DeviceRows::make_room_for_norms() {
  if (work_.row_norms == nullptr) work_.row_norms = allocate<double>(rows_.size(), device_, work_memory_);
}

std::vector<const void*> DeviceRows::grads(std::span<const cpu::TensorRow> views,
                                           std::span<const int64_t> taking_part) {
  std::vector<const void*> grads(views.size(), nullptr);
  for (const int64_t i : taking_part) grads[i] = views[i].numel == 0 ? &kNoElements : views[i][kGrad].data;
  return grads;
}

void DeviceRows::captured() {
  row_table_.captured();
  layout_table_.captured();
  pieces_.captured();
  chunk_pieces_.captured();
  block_chunks_.captured();
  block_chunks_of_several_.captured();
  in_graphs_.insert(in_graphs_.end(), work_memory_.begin(), work_memory_.end());
}

}  // namespace gradops
