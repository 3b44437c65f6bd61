// RAdam (Liu et al. 2020) as torch.optim defines it: while the second moment has seen too few gradients to be trusted,
// the update is the first moment alone; after that it is Adam's, rectified for the variance that is left.
#pragma once

#include "math/lerp.h"
#include "math/update.h"

namespace gradops {

struct RAdam {
  enum Moment { kExpAvg, kExpAvgSq, kMoments };
  enum Variant { kPlain, kVariants };
  static constexpr bool kScaleFree = false;  // the first updates are as large as the gradients

  struct Hyper {
    double beta1;
    double beta2;
    double eps;
  };

  struct Coefs {
    float exp_avg_coef;  // see lerp
    float beta2;
    float one_minus_beta2;
    float eps;
    float step_size;
    float adapts;  // 1, or 0 while the update is the first moment alone
  };

  static constexpr int variant(const Hyper&) { return kPlain; }

  GRADOPS_HD static constexpr bool uses(int, int) { return true; }

  // How many gradients the second moment is an average of, at most and now: of a plain average that is as spread.
  GRADOPS_HD static double longest(const Hyper& hyper) { return 2.0 / (1.0 - hyper.beta2) - 1.0; }
  GRADOPS_HD static double length(const Hyper& hyper, double step) {
    const double power = pow(hyper.beta2, step);
    return longest(hyper) - 2.0 * step * power / (1.0 - power);
  }

  GRADOPS_HD static bool adapts(const Hyper& hyper, double step) { return length(hyper, step) > 5.0; }

  // Only of an update that adapts.
  GRADOPS_HD static double rectification(const Hyper& hyper, double step) {
    const double now = length(hyper, step), end = longest(hyper);
    return sqrt((now - 4.0) * (now - 2.0) * end / ((end - 4.0) * (end - 2.0) * now));
  }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    const bool adapted = adapts(hyper, row.step);
    double step_size = row.lr / (1.0 - pow(hyper.beta1, row.step));
    if (adapted) step_size *= sqrt(1.0 - pow(hyper.beta2, row.step)) * rectification(hyper, row.step);
    return {lerp_coef(hyper.beta1),        static_cast<float>(hyper.beta2), static_cast<float>(1.0 - hyper.beta2),
            static_cast<float>(hyper.eps), static_cast<float>(step_size),   adapted ? 1.0f : 0.0f};
  }

  template <int kVariant>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    float& exp_avg = moments[kExpAvg];
    float& exp_avg_sq = moments[kExpAvgSq];
    exp_avg = lerp(exp_avg, grad, coefs.exp_avg_coef);
    exp_avg_sq = exp_avg_sq * coefs.beta2 + coefs.one_minus_beta2 * grad * grad;
    // Not a factor of 0 for the root, which may be inf.
    const float denom = coefs.adapts != 0.0f ? sqrtf(exp_avg_sq) + coefs.eps : 1.0f;
    return param - coefs.step_size * (exp_avg / denom);
  }
};

}  // namespace gradops
