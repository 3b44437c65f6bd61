// What an update of half a piece reads and writes, in device code.
#pragma once

#include "cuda/multi_tensor.cuh"

namespace gradops::cuda {

// A thread's values of half a piece: what was stored, and what was added to it. Where updates are not tracked nothing
// reads `moved`, and no code is made for it.
struct Updated {
  float param[8], moved[8];
};

// The tensors of a piece. Without kExtras none is compensated.
template <class Rule, bool kExtras>
struct UpdatedTensors {
  const PieceAt& piece;
  Stretch param;
  Stretch moments[Rule::kMoments];
  bool compensated;

  GRADOPS_DEVICE explicit UpdatedTensors(const PieceAt& at)
      : piece(at), param(piece.of(kParam)), compensated(kExtras && piece.has(kCompensation)) {
#pragma unroll
    for (int m = 0; m < Rule::kMoments; ++m) moments[m] = piece.of(moment_slot(m));
  }

  // Looked up where it is used, so that its place takes no registers in between.
  GRADOPS_DEVICE Stretch compensation() const { return piece.of(kCompensation); }

  // A missing moment has address 0, which is aligned.
  GRADOPS_DEVICE bool in_vectors() const {
    if (!param.in_vectors()) return false;
#pragma unroll
    for (int m = 0; m < Rule::kMoments; ++m) {
      if (!moments[m].in_vectors()) return false;
    }
    return !compensated || compensation().in_vectors();
  }
};

// Makes of a parameter what it was before it was rounded. No compensation is float32.
GRADOPS_DEVICE void add_compensation(const Stretch& compensation, int half, const Lanes& lanes, float (&param)[8]) {
  float kept[8];
  if (compensation.view.dtype == Dtype::kBFloat16) {
    load_vectors<Dtype::kBFloat16, 1>(compensation, half, lanes, UsedOnce(), kept);
  } else {
    load_vectors<Dtype::kFloat16, 1>(compensation, half, lanes, UsedOnce(), kept);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) param[i] += kept[i];
}

GRADOPS_DEVICE void store_compensation(const Stretch& compensation, int half, const Lanes& lanes,
                                       const float (&left)[8]) {
  if (compensation.view.dtype == Dtype::kBFloat16) {
    store_vectors<Dtype::kBFloat16>(compensation, half, lanes, left);
  } else {
    store_vectors<Dtype::kFloat16>(compensation, half, lanes, left);
  }
}

}  // namespace gradops::cuda
