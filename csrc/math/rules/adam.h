// Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018) and AdamW (Loshchilov and Hutter 2019) as torch.optim
// defines them.
#pragma once

#include "math/lerp.h"
#include "math/update.h"

namespace gradops {

struct Adam {
  enum Moment { kExpAvg, kExpAvgSq, kMaxExpAvgSq, kMoments };
  enum Variant { kPlain, kAmsgrad, kVariants };
  static constexpr bool kScaleFree = true;

  struct Hyper {
    double beta1;
    double beta2;
    double eps;
    double amsgrad;
  };

  struct Coefs {
    float exp_avg_coef;  // see lerp
    float beta2;
    float one_minus_beta2;
    float eps;
    float step_size;                  // lr / (1 - beta1^step)
    float inv_bias_correction2_sqrt;  // 1 / sqrt(1 - beta2^step)
  };

  static constexpr int variant(const Hyper& hyper) { return hyper.amsgrad != 0.0 ? kAmsgrad : kPlain; }

  GRADOPS_HD static constexpr bool uses(int variant, int moment) {
    return moment != kMaxExpAvgSq || variant == kAmsgrad;
  }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    return {lerp_coef(hyper.beta1),
            static_cast<float>(hyper.beta2),
            static_cast<float>(1.0 - hyper.beta2),
            static_cast<float>(hyper.eps),
            static_cast<float>(row.lr / (1.0 - pow(hyper.beta1, row.step))),
            static_cast<float>(1.0 / sqrt(1.0 - pow(hyper.beta2, row.step)))};
  }

  template <int kVariant>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    moments[kExpAvg] = lerp(moments[kExpAvg], grad, coefs.exp_avg_coef);
    moments[kExpAvgSq] = moments[kExpAvgSq] * coefs.beta2 + coefs.one_minus_beta2 * grad * grad;
    float second_moment = moments[kExpAvgSq];
    if constexpr (kVariant == kAmsgrad) {
      float& largest = moments[kMaxExpAvgSq];
      largest = largest > second_moment ? largest : second_moment;
      second_moment = largest;
    }
    const float denom = sqrtf(second_moment) * coefs.inv_bias_correction2_sqrt + coefs.eps;
    return param - coefs.step_size * (moments[kExpAvg] / denom);
  }
};

}  // namespace gradops
