// Statistics of whole parameters, of which each process has measured its part.
#pragma once

#include <span>
#include <vector>

#include "cpu/multi_tensor.h"
#include "cpu/units.h"
#include "host/param_row.h"

namespace gradops {

// What a step knows of its rows, of its own part at first, then of all processes' parts together.
struct RowStats {
  std::vector<GradStats> grads;      // one a row, as in those that follow
  std::vector<PowerSum> params;      // sums of squares; where a step compares with them
  std::vector<uint8_t> taking_part;  // whether there is a gradient
};

// Merges what all processes have measured, in their order, so that each gets the same bits. `units` is null where no
// units are clipped; of a parameter that is one unit the processes' sums are added. `found_inf` becomes whether any
// process saw an inf or NaN, now or before. One gathering.
void share_stats(const Exchange& exchange, std::span<const ParamRow> rows, const cpu::Norm& norm, RowStats& stats,
                 UnitClip* units, bool& found_inf);

// The same for sums of squares after the update, `moved` and `params`, and for the smallest factor of a unit.
void share_updates(const Exchange& exchange, std::span<PowerSum> moved, std::span<PowerSum> params, float& smallest);

}  // namespace gradops
