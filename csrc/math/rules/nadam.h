// NAdam (Dozat 2016) as torch.optim defines it: the momentum grows from step to step, and the state keeps the product
// of all of it so far, by which both parts of the update are corrected.
#pragma once

#include "math/lerp.h"
#include "math/update.h"

namespace gradops {

struct NAdam {
  enum Moment { kExpAvg, kExpAvgSq, kMoments };
  enum Variant { kPlain, kVariants };
  static constexpr bool kScaleFree = true;

  struct Hyper {
    double beta1;
    double beta2;
    double eps;
    double momentum_decay;
  };

  // The update's numerator and denominator are both multiplied by sqrt(1 - beta2^step).
  struct Coefs {
    float exp_avg_coef;  // see lerp
    float beta2;
    float one_minus_beta2;
    float eps;
    float grad_size;
    float exp_avg_size;
  };

  static constexpr int variant(const Hyper&) { return kPlain; }

  GRADOPS_HD static constexpr bool uses(int, int) { return true; }

  GRADOPS_HD static double momentum(const Hyper& hyper, double step) {
    return hyper.beta1 * (1.0 - 0.5 * pow(0.96, step * hyper.momentum_decay));
  }

  // Rounded as torch rounds it.
  GRADOPS_HD static float next_scalar(const Hyper& hyper, double step, float mu_product) {
    return mu_product * static_cast<float>(momentum(hyper, step));
  }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    const double mu_next = momentum(hyper, row.step + 1.0);
    const double product = next_scalar(hyper, row.step, static_cast<float>(row.scalar));
    const double root = sqrt(1.0 - pow(hyper.beta2, row.step));
    return {lerp_coef(hyper.beta1),
            static_cast<float>(hyper.beta2),
            static_cast<float>(1.0 - hyper.beta2),
            static_cast<float>(hyper.eps * root),
            static_cast<float>(row.lr * root * (1.0 - momentum(hyper, row.step)) / (1.0 - product)),
            static_cast<float>(row.lr * root * mu_next / (1.0 - product * mu_next))};
  }

  template <int kVariant>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    float& exp_avg = moments[kExpAvg];
    float& exp_avg_sq = moments[kExpAvgSq];
    exp_avg = lerp(exp_avg, grad, coefs.exp_avg_coef);
    exp_avg_sq = exp_avg_sq * coefs.beta2 + coefs.one_minus_beta2 * grad * grad;
    return param - (coefs.grad_size * grad + coefs.exp_avg_size * exp_avg) / (sqrtf(exp_avg_sq) + coefs.eps);
  }
};

}  // namespace gradops
