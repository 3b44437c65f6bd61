#include "cuda/host/units.h"

namespace gradops {

void DeviceUnits::link(std::span<const cuda::TensorRow> rows, std::span<const Units> units) {
  std::vector<std::pair<int64_t, Units>> wanted;
  for (size_t i = 0; i < rows.size(); ++i) wanted.emplace_back(rows[i].numel, units[i]);
  if (table_.rows != nullptr && wanted == known_) return;
  known_ = std::move(wanted);
  cuda::UnitTableHost host = cuda::cut_units(rows, units);
  table_.group_count = static_cast<int32_t>(host.groups.size());
  table_.rows = rows_.update(std::move(host.rows), device_);
  table_.groups = groups_.update(std::move(host.groups), device_);
  work_memory_.clear();
  work_.segments = allocate<cuda::UnitSquares>(host.segments, device_, work_memory_);
  work_.coefs = allocate<float>(host.units, device_, work_memory_);
  work_.smallest_coef = allocate<int32_t>(1, device_, work_memory_);
}

void DeviceUnits::captured() {
  rows_.captured();
  groups_.captured();
  in_graphs_.insert(in_graphs_.end(), work_memory_.begin(), work_memory_.end());
}

}  // namespace gradops
