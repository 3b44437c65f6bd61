// SGD with momentum as torch.optim defines it: the buffer begins as the first gradient, without dampening (Sutskever et
// al. 2013, for Nesterov's form).
#pragma once

#include "math/update.h"

namespace gradops {

struct Sgd {
  enum Moment { kMomentumBuffer, kMoments };
  enum Variant { kPlain, kMomentum, kNesterov, kVariants };
  static constexpr bool kScaleFree = false;

  struct Hyper {
    double momentum;
    double dampening;
    double nesterov;
  };

  struct Coefs {
    float lr;
    float momentum;
    float kept;         // of the buffer: momentum, or 0 in the first update
    float grad_weight;  // 1 - dampening, or 1
  };

  static constexpr int variant(const Hyper& hyper) {
    return hyper.momentum == 0.0 ? kPlain : hyper.nesterov != 0.0 ? kNesterov : kMomentum;
  }

  GRADOPS_HD static constexpr bool uses(int variant, int) { return variant != kPlain; }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    const bool first = row.step <= 1.0;
    return {static_cast<float>(row.lr), static_cast<float>(hyper.momentum),
            static_cast<float>(first ? 0.0 : hyper.momentum), static_cast<float>(first ? 1.0 : 1.0 - hyper.dampening)};
  }

  template <int kVariant>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    if constexpr (kVariant != kPlain) {
      float& buffer = moments[kMomentumBuffer];
      buffer = coefs.kept * buffer + coefs.grad_weight * grad;
      grad = kVariant == kNesterov ? grad + coefs.momentum * buffer : buffer;
    }
    return param - coefs.lr * grad;
  }
};

}  // namespace gradops
