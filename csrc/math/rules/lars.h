// LARS (You et al. 2017), with the options of timm's Lars: SGD's update of a gradient that is multiplied by the trust
// ratio of its tensor.
#pragma once

#include "math/rules/sgd.h"

namespace gradops {

struct Lars {
  enum Moment { kMomentumBuffer, kMoments };
  static constexpr int kVariants = Sgd::kVariants;
  static constexpr bool kScaleFree = false;

  struct Hyper {
    Sgd::Hyper sgd;
    double trust_coeff;
    double eps;
    double trust_clip;
    double always_adapt;
  };

  struct Coefs {
    Sgd::Coefs sgd;
    float trust_ratio;
  };

  static constexpr int variant(const Hyper& hyper) { return Sgd::variant(hyper.sgd); }

  GRADOPS_HD static constexpr bool uses(int variant, int moment) { return Sgd::uses(variant, moment); }

  // The trust ratio: 1 where a group is not adapted, and of weights or a gradient of 0.
  GRADOPS_HD static double grad_factor(const Hyper& hyper, double weight_decay, double lr, const RowNorms& norms) {
    if (weight_decay == 0.0 && hyper.always_adapt == 0.0) return 1.0;
    double ratio = 1.0;
    if (norms.param > 0.0 && norms.grad > 0.0) {
      ratio = hyper.trust_coeff * norms.param / (norms.grad + weight_decay * norms.param + hyper.eps);
    }
    if (hyper.trust_clip == 0.0) return ratio;
    return ratio < lr ? ratio / lr : 1.0;
  }

  GRADOPS_HD static Coefs coefs(const Hyper& hyper, const RowStep& row) {
    return {Sgd::coefs(hyper.sgd, row), static_cast<float>(row.grad_factor)};
  }

  template <int kVariant>
  GRADOPS_HD static float update(float param, float grad, float (&moments)[kMoments], const Coefs& coefs) {
    return Sgd::update<kVariant>(param, coefs.trust_ratio * grad, moments, coefs.sgd);
  }
};

}  // namespace gradops
