#include "cpu/units.h"

#include <algorithm>

#include "math/agc.h"

namespace gradops {

void UnitClip::cut(const StepCall& call, const cpu::ChunkTable& table) {
  units_.assign(call.rows.size(), {});
  first_unit_.assign(call.rows.size(), 0);
  int64_t count = 0;
  for (const int64_t i : call.taking_part) {
    first_unit_[i] = count;
    if (!call.groups[call.rows[i].group()].clips_units) continue;
    units_[i] = call.rows[i].units();
    count += units_[i].count;
  }
  merged_.resize(count);
  coefs_.resize(count);
  first_piece_.clear();
  int64_t pieces = 0;
  for (const cpu::Chunk& chunk : table.chunks()) {
    first_piece_.push_back(pieces);
    pieces += cpu::pieces_of(units_[chunk.row], chunk.begin, chunk.n);
  }
  squares_.resize(pieces);
}

void UnitClip::merge(const cpu::ChunkTable& table) {
  std::fill(merged_.begin(), merged_.end(), cpu::UnitSquares());
  const cpu::UnitSquares* piece = squares_.data();
  for (const cpu::Chunk& chunk : table.chunks()) {
    const Units& units = units_[chunk.row];
    if (units.count == 0) continue;
    cpu::UnitSquares* of_row = merged_.data() + first_unit_[chunk.row];
    const auto merge = [&](int64_t unit, int64_t, int64_t) { of_row[unit].merge(*piece++); };
    cpu::for_each_piece(units, chunk.begin, chunk.n, merge);
  }
}

float UnitClip::decide(double ratio, float clip_coef) {
  float smallest = 1.0f;
  for (size_t i = 0; i < merged_.size(); ++i) {
    coefs_[i] = agc_coef(std::sqrt(merged_[i].param), clip_coef * std::sqrt(merged_[i].grad), ratio);
    smallest = std::min(smallest, coefs_[i]);
  }
  return smallest;
}

void UnitClip::give_coefs(int64_t row, cpu::RowUpdate& update) const {
  update.units = units_[row];
  update.unit_coefs = units_[row].count == 0 ? nullptr : coefs_.data() + first_unit_[row];
}

}  // namespace gradops
