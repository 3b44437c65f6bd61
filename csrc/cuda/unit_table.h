// Where the units are that adaptive gradient clipping treats one by one; host side, once for each set of parameters.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "cuda/step_args.h"

namespace gradops::cuda {

// What UnitTable points to, before it is copied to the device.
struct UnitTableHost {
  std::vector<RowUnits> rows;
  std::vector<UnitGroup> groups;
  int64_t segments = 0;
  int64_t units = 0;
};

// `units` has one entry a row; a row without elements has none.
inline UnitTableHost cut_units(std::span<const TensorRow> rows, std::span<const Units> units) {
  UnitTableHost table;
  for (size_t i = 0; i < rows.size(); ++i) {
    RowUnits& row = table.rows.emplace_back();
    const int64_t numel = rows[i].numel;
    if (numel == 0 || units[i].count == 0) continue;
    row.run = units[i].run;
    row.count = units[i].count;
    row.repeats = numel / (row.run * row.count);
    row.pieces_of_run = row.run == 1 ? 1 : (row.run - 2) / kPiece + 2;
    row.first_segment = table.segments;
    row.first_unit = table.units;
    row.lanes = 1;
    while (row.lanes < 32 && row.lanes * kSegmentsOfLane < row.repeats * row.pieces_of_run) row.lanes *= 2;
    table.segments += numel / row.run + (numel + kPiece - 1) / kPiece;
    table.units += row.count;
    for (int64_t unit = 0; unit < row.count; unit += 32 / row.lanes) {
      table.groups.push_back({static_cast<int32_t>(i), static_cast<int32_t>(unit * row.lanes / 32)});
    }
  }
  return table;
}

}  // namespace gradops::cuda
