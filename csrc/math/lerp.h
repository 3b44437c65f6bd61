// A moving average of gradients.
#pragma once

#include "math/common.h"

namespace gradops {

// What `lerp` takes for beta.
GRADOPS_HD float lerp_coef(double beta) { return static_cast<float>((beta > 0.5 ? 1.0 : 0.0) - beta); }

// beta * average + (1 - beta) * value, from the end that weighs more, as torch.lerp: from the other one, the rounding
// of a large difference would stay in the sum. `coef` is 1 - beta from the average, and -beta from the value.
GRADOPS_HD float lerp(float average, float value, float coef) {
  return (coef > 0.0f ? average : value) + (value - average) * coef;
}

}  // namespace gradops
