// Adaptive gradient clipping of a step on the CPU: where the units are, how large, and what each is multiplied by.
#pragma once

#include <vector>

#include "host/step_backend.h"

namespace gradops {

class UnitClip {
 public:
  // Follows the rows that take part, and their chunks.
  void cut(const StepCall& call, const cpu::ChunkTable& table);

  // What the pass over the gradients fills.
  cpu::UnitPieces pieces() { return {units_, first_piece_, squares_}; }

  // From the pieces to every unit.
  void merge(const cpu::ChunkTable& table);

  // The only unit of a row that has one; null for others.
  cpu::UnitSquares* only_unit(int64_t row) { return units_[row].count == 1 ? &merged_[first_unit_[row]] : nullptr; }

  // Every unit's factor, which follows `clip_coef`. Returns the smallest.
  float decide(double ratio, float clip_coef);

  // Puts the row's factors where its update reads them.
  void give_coefs(int64_t row, cpu::RowUpdate& update) const;

 private:
  std::vector<Units> units_;               // one a row
  std::vector<int64_t> first_unit_;        // of each row, among those of all
  std::vector<int64_t> first_piece_;       // of each chunk
  std::vector<cpu::UnitSquares> squares_;  // one a piece
  std::vector<cpu::UnitSquares> merged_;   // one a unit
  std::vector<float> coefs_;
};

}  // namespace gradops
