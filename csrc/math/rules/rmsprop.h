// RMSprop (Tieleman and Hinton 2012), centered (Graves 2013) or not, as torch.optim defines it.
#pragma once

#include "math/update.h"

namespace gradops {

struct Rmsprop {
  enum Moment { kSquareAvg, kMomentumBuffer, kGradAvg, kMoments };
  enum Variant { kPlain, kMomentum, kCentered, kCenteredMomentum, kVariants };
  static constexpr bool kScaleFree = true;

  struct Hyper {
    double alpha;
    double eps;
    double momentum;
    double centered;
  };

  struct Coefs {
    float lr;
    float alpha;
    float one_minus_alpha;
    float eps;
    float momentum;
  };

  GRADOPS_HD static constexpr bool has_momentum(int variant) {
    return variant == kMomentum || variant == kCenteredMomentum;
  }
  GRADOPS_HD static constexpr bool is_centered(int variant) { return variant >= kCentered; }

  static constexpr int variant(const Hyper& hyper) {
    return (hyper.momentum > 0.0 ? kMomentum : kPlain) + (hyper.centered != 0.0 ? kCentered : kPlain);
  }

  GRADOPS_HD static constexpr bool uses(int variant, int moment) {
    return moment == kSquareAvg || (moment == kGradAvg ? is_centered(variant) : has_momentum(variant));
  }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    return {static_cast<float>(row.lr), static_cast<float>(hyper.alpha), static_cast<float>(1.0 - hyper.alpha),
            static_cast<float>(hyper.eps), static_cast<float>(hyper.momentum)};
  }

  template <int kVariant>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    moments[kSquareAvg] = moments[kSquareAvg] * coefs.alpha + coefs.one_minus_alpha * grad * grad;
    float variance = moments[kSquareAvg];
    if constexpr (is_centered(kVariant)) {
      float& average = moments[kGradAvg];
      average += (grad - average) * coefs.one_minus_alpha;
      variance -= average * average;
      variance = variance < 0.0f ? 0.0f : variance;  // by rounding, where the gradient stays the same
    }
    float direction = grad / (sqrtf(variance) + coefs.eps);
    if constexpr (has_momentum(kVariant)) {
      direction = coefs.momentum * moments[kMomentumBuffer] + direction;
      moments[kMomentumBuffer] = direction;
    }
    return param - coefs.lr * direction;
  }
};

}  // namespace gradops
