// The places of a step's numbers in the live buffers behind `optimizer.stats`. No torch and no CUDA header, so that the
// host path and the kernels share them.
#pragma once

namespace gradops {

// Of `scalars`, float32.
enum StepScalar {
  kGradNorm,
  kClipCoef,
  kFoundInf,
  kLossScaleUsed,
  kLossScale,
  kGuarded,
  kLrFactorUsed,
  kLrFactor,
  kUsualNorm,
  kDeviation
};

// Of `counters`, int64.
enum StepCounter { kStepsTaken, kStepsSkipped, kGrowthTracker, kNormsSeen };

}  // namespace gradops
