// The units of a step with adaptive gradient clipping, as tables on the device.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "cuda/host/table.h"
#include "cuda/unit_table.h"

namespace gradops {

class DeviceUnits {
 public:
  explicit DeviceUnits(at::Device device) : device_(device) {}

  // Makes the tables those of `units`, one entry a row. Nothing is copied where nothing changed.
  void link(std::span<const cuda::TensorRow> rows, std::span<const Units> units);

  const cuda::UnitTable& table() const { return table_; }
  const cuda::UnitWork& work() const { return work_; }

  // A graph has been captured that uses the tables: they stay as they are, as long as this does.
  void captured();

 private:
  at::Device device_;
  std::vector<std::pair<int64_t, Units>> known_;  // elements and units of each row
  DeviceTable<cuda::RowUnits> rows_;
  DeviceTable<cuda::UnitGroup> groups_;
  cuda::UnitTable table_;
  cuda::UnitWork work_;
  std::vector<at::Tensor> work_memory_;
  std::vector<at::Tensor> in_graphs_;
};

}  // namespace gradops
