// Rows and the work they make, as tables on the device.
#pragma once

#include <span>
#include <vector>

#include "cpu/multi_tensor.h"
#include "cuda/host/table.h"
#include "cuda/host/work_table.h"
#include "cuda/launch.h"

namespace gradops {

// Appends a layout as the kernels read it; its place, plus one, or 0 where there is none.
size_t append_layout(const cpu::Layout* layout, std::vector<int64_t>& layouts);

// None on the CPU, which is what the tests' emulator takes for a GPU.
cuda::Stream current_stream(at::Device device);

class DeviceRows {
 public:
  // `kernels` are those of the rule that the rows are for, null for none.
  DeviceRows(at::Device device, const cuda::RuleKernels* kernels);

  void clear() { rows_.clear(); }

  // Makes work() hold what a tracked update leaves, and the parameters' norms alone.
  void make_room_for_updates();
  void make_room_for_norms();

  // Every row, as the device has it; one that never took part is empty. Their `grad.data` is null.
  const std::vector<cuda::TensorRow>& rows() const { return rows_; }

  // Makes the tables those of `rows`, whose tensors come from `views` for the rows that take part. Whether work was cut
  // anew: what earlier steps have gathered in work().param_sums is gone then.
  bool link(std::vector<cuda::TensorRow> rows, std::span<const cpu::TensorRow> views,
            std::span<const int64_t> taking_part);

  // The address of each row's gradient; null for those that do not take part.
  static std::vector<const void*> grads(std::span<const cpu::TensorRow> views, std::span<const int64_t> taking_part);

  const cuda::LaunchForm& form() const { return form_; }
  const cuda::WorkTable& table() const { return table_; }

  // The same for a step that is several launches even where one could hold the whole grid, with twice the blocks.
  const cuda::LaunchForm& form_of_several() const { return form_of_several_; }
  cuda::WorkTable table_of_several() const;
  const cuda::Workspace& work() const { return work_; }

  // A graph has been captured that uses the tables: they stay as they are, as long as this does.
  void captured();

 private:
  void cut();

  at::Device device_;
  cuda::DeviceLimits limits_;
  cuda::LaunchForm form_, form_of_several_;
  std::vector<cuda::TensorRow> rows_;
  std::vector<int64_t> layouts_;  // of the rows that have one, end to end

  DeviceTable<cuda::TensorRow> row_table_;
  DeviceTable<int64_t> layout_table_;
  DeviceTable<cuda::Piece> pieces_;
  DeviceTable<int32_t> chunk_pieces_, block_chunks_, block_chunks_of_several_;
  cuda::WorkTable table_ = {};
  const int32_t* chunks_of_several_ = nullptr;
  size_t piece_count_ = 0;
  cuda::Workspace work_ = {};
  std::vector<at::Tensor> work_memory_;
  std::vector<at::Tensor> in_graphs_;
};

}  // namespace gradops
