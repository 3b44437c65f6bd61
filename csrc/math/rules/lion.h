// Lion (Chen et al. 2023, algorithm 2): every weight moves by the learning rate, against the sign of a blend of
// gradient and momentum.
#pragma once

#include "math/update.h"

namespace gradops {

struct Lion {
  enum Moment { kExpAvg, kMoments };
  enum Variant { kPlain, kVariants };
  static constexpr bool kScaleFree = true;

  struct Hyper {
    double beta1;
    double beta2;
  };

  struct Coefs {
    float lr;
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
  };

  static constexpr int variant(const Hyper&) { return kPlain; }

  GRADOPS_HD static constexpr bool uses(int, int) { return true; }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    return {static_cast<float>(row.lr), static_cast<float>(hyper.beta1), static_cast<float>(1.0 - hyper.beta1),
            static_cast<float>(hyper.beta2), static_cast<float>(1.0 - hyper.beta2)};
  }

  template <int kVariant>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    float& exp_avg = moments[kExpAvg];
    const float direction = coefs.beta1 * exp_avg + coefs.one_minus_beta1 * grad;
    exp_avg = coefs.beta2 * exp_avg + coefs.one_minus_beta2 * grad;
    return param - times_sign(coefs.lr, direction);
  }
};

}  // namespace gradops
