// Units on the CPU (see math/agc.h). Chunks cut them; what a chunk holds of a run of one unit is a piece.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "math/agc.h"

namespace gradops::cpu {

// How many runs the elements [begin, begin + n) belong to.
inline int64_t pieces_of(const Units& units, int64_t begin, int64_t n) {
  return units.count == 0 ? 0 : (begin + n - 1) / units.run - begin / units.run + 1;
}

// Calls visit(unit, first element, elements) for each piece of [begin, begin + n), counted from `begin`.
template <class Visit>
void for_each_piece(const Units& units, int64_t begin, int64_t n, const Visit& visit) {
  int64_t unit = begin / units.run % units.count;
  for (int64_t first = 0, left = units.run - begin % units.run; first < n; left = units.run) {
    const int64_t length = left < n - first ? left : n - first;
    visit(unit, first, length);
    first += length;
    unit = unit + 1 == units.count ? 0 : unit + 1;
  }
}

// Sums of squares in float64, which holds the square of every float32.
struct UnitSquares {
  double grad = 0.0;  // of clamped values
  double param = 0.0;

  void merge(const UnitSquares& other) {
    grad += other.grad;
    param += other.param;
  }
};

// Those of each piece of a chunk that begins at element `begin` of its parameter.
void unit_squares_chunk(const float* grad, const float* param, int64_t begin, int64_t n, const Units& units,
                        const Unscaling& unscaling, UnitSquares* pieces);

// The chunk's gradients unscaled, clamped and clipped, each by the decision and by its unit. `clipped` may be `grad`.
void clip_units_chunk(const float* grad, int64_t begin, int64_t n, const Units& units, const float* coefs,
                      const StepDecision& decision, float* clipped);

}  // namespace gradops::cpu
