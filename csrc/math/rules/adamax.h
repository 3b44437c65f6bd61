// Adamax (Kingma and Ba 2015, section 7.1) as torch.optim defines it.
#pragma once

#include "math/lerp.h"
#include "math/update.h"

namespace gradops {

struct Adamax {
  enum Moment { kExpAvg, kExpInf, kMoments };
  enum Variant { kPlain, kVariants };
  static constexpr bool kScaleFree = true;

  struct Hyper {
    double beta1;
    double beta2;
    double eps;
  };

  struct Coefs {
    float exp_avg_coef;  // see lerp
    float beta2;
    float eps;
    float step_size;  // lr / (1 - beta1^step)
  };

  static constexpr int variant(const Hyper&) { return kPlain; }

  GRADOPS_HD static constexpr bool uses(int, int) { return true; }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    return {lerp_coef(hyper.beta1), static_cast<float>(hyper.beta2), static_cast<float>(hyper.eps),
            static_cast<float>(row.lr / (1.0 - pow(hyper.beta1, row.step)))};
  }

  template <int>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    moments[kExpAvg] = lerp(moments[kExpAvg], grad, coefs.exp_avg_coef);
    const float kept = coefs.beta2 * moments[kExpInf], size = fabsf(grad) + coefs.eps;
    moments[kExpInf] = kept > size ? kept : size;
    return param - coefs.step_size * (moments[kExpAvg] / moments[kExpInf]);
  }
};

}  // namespace gradops
