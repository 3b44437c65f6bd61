// The average of a parameter over its updates: gradops.WeightEma.
#pragma once

#include <cmath>

#include "math/common.h"

namespace gradops {

struct EmaPolicy {
  double decay;
  double min_decay;
  double inv_gamma;  // of the warm-up 1 - (1 + n / inv_gamma)^-power; 0 for none
  double power;
  double tau;    // of the warm-up decay * (1 - exp(-n / tau)); 0 for none
  double start;  // averagings that copy
  double every;  // an averaging in so many updates
};

// What the average takes of the parameter in its update number `step`, from 1; 0 for an update that is left out.
GRADOPS_HD float ema_weight(const EmaPolicy& policy, double step) {
  const double turn = step / policy.every;
  if (turn != floor(turn)) return 0.0f;
  const double n = turn - policy.start;
  if (n <= 0.0) return 1.0f;
  double decay = policy.decay;
  if (policy.inv_gamma > 0.0) {
    decay = fmin(decay, 1.0 - pow(1.0 + n / policy.inv_gamma, -policy.power));
    decay = fmax(decay, policy.min_decay);
  } else if (policy.tau > 0.0) {
    decay *= 1.0 - exp(-n / policy.tau);
  }
  return static_cast<float>(1.0 - decay);
}

// The average of one element, from the end that weighs more, so that a weight of 1 copies: from the average where
// weight < 0.5.
template <bool kFromAverage>
GRADOPS_HD float averaged(float average, float param, float weight) {
  const float away = param - average;
  return kFromAverage ? average + weight * away : param - (1.0f - weight) * away;
}

GRADOPS_HD float averaged(float average, float param, float weight) {
  return weight < 0.5f ? averaged<true>(average, param, weight) : averaged<false>(average, param, weight);
}

}  // namespace gradops
