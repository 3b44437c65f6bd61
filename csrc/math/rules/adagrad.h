// Adagrad (Duchi et al. 2011) as torch.optim defines it. Where the sum begins is not for the update to know.
#pragma once

#include "math/update.h"

namespace gradops {

struct Adagrad {
  enum Moment { kSum, kMoments };
  enum Variant { kPlain, kVariants };
  static constexpr bool kScaleFree = true;

  struct Hyper {
    double lr_decay;
    double eps;
  };

  struct Coefs {
    float decayed_lr;  // lr / (1 + (step - 1) * lr_decay)
    float eps;
  };

  static constexpr int variant(const Hyper&) { return kPlain; }

  GRADOPS_HD static constexpr bool uses(int, int) { return true; }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    return {static_cast<float>(row.lr / (1.0 + (row.step - 1.0) * hyper.lr_decay)), static_cast<float>(hyper.eps)};
  }

  template <int>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    moments[kSum] += grad * grad;
    return param - coefs.decayed_lr * (grad / (sqrtf(moments[kSum]) + coefs.eps));
  }
};

}  // namespace gradops
