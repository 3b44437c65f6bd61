// What one tensor of activations looks like: mean, deviation and largest of its finite values, and counts that leave
// none out.
//
// A chunk's values are held against the chunk's own mean, so that a mean far from 0 costs no precision, and chunks are
// merged in float64 (Chan, Golub and LeVeque 1983). Where squares could leave the range of float32, the chunk is
// measured in a scale taken from its largest value, a power of two.
#pragma once

#include "math/common.h"

namespace gradops {

// The histogram's edges are the powers of two between these, of either sign, and 0: exact to tell apart in a float's
// exponent, and reaching from what rounds away beside 1 to float16's largest value. A value on an edge belongs to the
// bin farther from 0.
constexpr int kLowestExponent = -10;
constexpr int kHighestExponent = 16;
constexpr int kBinsPerSign = kHighestExponent - kLowestExponent + 2;
constexpr int kBins = 2 * kBinsPerSign;

// The bin of a value; kBins of one that is not finite.
GRADOPS_HD int32_t activation_bin(float x) {
  const int32_t exponent = (float_bits(x) & 0x7fffffff) >> 23;
  int32_t outward = exponent - (127 + kLowestExponent) + 1;
  outward = outward < 0 ? 0 : outward;
  outward = outward > kBinsPerSign - 1 ? kBinsPerSign - 1 : outward;
  const int32_t bin = x < 0.0f ? kBinsPerSign - 1 - outward : kBinsPerSign + outward;
  return exponent == 255 ? kBins : bin;
}

GRADOPS_HD int32_t finite_abs_bits(float x) {
  const int32_t abs_bits = float_bits(x) & 0x7fffffff;
  return abs_bits >= kInfBits ? 0 : abs_bits;
}

// x in a scale, or 0 where it is not finite. Not by a comparison of values, which NaN would fail and inf pass.
GRADOPS_HD float finite_in_scale(float x, float inv_scale) {
  return (float_bits(x) & 0x7fffffff) >= kInfBits ? 0.0f : x * inv_scale;
}

// How far it is from the mean, or 0 where it is not finite.
GRADOPS_HD float deviation(float x, float inv_scale, float mean) {
  return (float_bits(x) & 0x7fffffff) >= kInfBits ? 0.0f : x * inv_scale - mean;
}

// The inverse of the scale for values of which this is the largest; 1 where sums of squares of up to 2^13 of them are
// exact without one. Its own inverse is a float too.
GRADOPS_HD float inv_scale_for(int32_t abs_max_bits) {
  const int32_t exponent = abs_max_bits >> 23;
  if (abs_max_bits == 0 || (exponent >= 127 - 40 && exponent <= 127 + 50)) return 1.0f;
  const int32_t normal = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  return bits_float((254 - normal) << 23);
}

// Number, mean and sum of squared deviations of finite values.
struct Moments {
  double n = 0.0;
  double mean = 0.0;
  double m2 = 0.0;

  GRADOPS_HD void merge(const Moments& other) {
    if (other.n == 0.0) return;
    const double all = n + other.n;
    const double apart = other.mean - mean;
    mean += apart * (other.n / all);
    m2 += other.m2 + apart * apart * (n * other.n / all);
    n = all;
  }

  // Of n values in a scale, from the sums of deviations from `mean` and of their squares.
  GRADOPS_HD static Moments in_scale(double n, double mean, double deviations, double squares, double inv_scale) {
    if (n == 0.0) return {};
    const double scale = 1.0 / inv_scale;
    const double m2 = squares - deviations * deviations / n;
    return {n, (mean + deviations / n) * scale, (m2 > 0.0 ? m2 : 0.0) * scale * scale};
  }
};

}  // namespace gradops
