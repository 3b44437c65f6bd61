// What the kernels of every device know of a parameter's tensors. No torch and no CUDA header.
#pragma once

#include "math/common.h"

namespace gradops {

enum class Dtype : uint8_t { kFloat32, kBFloat16, kFloat16 };

constexpr int kMaxMoments = 3;

// The tensors of one parameter. Which of them are there depends on the update rule, the group and the phase.
enum Slot {
  kParam,         // what is updated: the parameter, or its float32 master where it has one
  kRounded,       // then the parameter, which takes the master's values rounded
  kCompensation,  // what rounding took off the parameter
  kEma,           // the average of what is updated, float32
  kGrad,
  kMoment0,
  kSlots = kMoment0 + kMaxMoments
};

GRADOPS_HD constexpr Slot moment_slot(int moment) { return static_cast<Slot>(kMoment0 + moment); }

// A tensor in memory: null where there is none. `layout` says how to walk it; null where memory runs in the order of
// the elements. All tensors of a parameter are walked in one order of elements.
template <class Layout>
struct ViewOf {
  void* data = nullptr;
  const Layout* layout = nullptr;
  Dtype dtype = Dtype::kFloat32;

  bool operator==(const ViewOf&) const = default;
};

}  // namespace gradops
