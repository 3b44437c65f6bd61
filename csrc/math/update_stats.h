// How far an update moved a parameter, and what it left.
#pragma once

#include "math/common.h"

namespace gradops {

// ||new - old|| / ||new||. What was 0 and stays 0 has not moved.
GRADOPS_HD float update_ratio(double moved, double norm) {
  return moved == 0.0 ? 0.0f : static_cast<float>(moved / norm);
}

// The root of the mean square of `numel` values with this norm; 0 for none.
GRADOPS_HD double rms_of(double norm, int64_t numel) { return norm / sqrt(static_cast<double>(numel > 1 ? numel : 1)); }

}  // namespace gradops
