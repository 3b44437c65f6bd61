// What one pass over the gradients learns: largest absolute value, non-finite elements and the norm.
//
// A sum of squares in float32 overflows from 1e19 on and vanishes below 1e-19, so every chunk's sum carries a `scale`:
// sum(|x|^p) = power_sum * scale^p. The scale is 1 unless the plain sum left the range in which it is exact; then the
// chunk is summed once more with its values measured in a scale taken from its largest element. Sums of chunks are
// merged in float64, a few operations a chunk.
#pragma once

#include "math/common.h"

namespace gradops {

enum class NormType { kL1, kL2, kInf, kGeneral };

GRADOPS_HD NormType norm_type_of(double p) {
  if (p == 1.0) return NormType::kL1;
  if (p == 2.0) return NormType::kL2;
  return std::isinf(p) ? NormType::kInf : NormType::kGeneral;
}

// How a stored gradient element becomes the value that is measured and applied: times inv_scale, then clamped.
struct Unscaling {
  float inv_scale = 1.0f;
  float clip_value = INFINITY;
};

GRADOPS_HD float clamp_grad(float x, float clip_value) {
  x = x > clip_value ? clip_value : x;  // a NaN fails both comparisons and stays
  return x < -clip_value ? -clip_value : x;
}

// One lane of a chunk's reduction. Absolute values are compared as integers: the order is the same for numbers, inf
// lies above every number and NaN above inf, so one maximum answers "how large", "any inf" and "any NaN".
template <NormType kNorm>
GRADOPS_HD void add_element(float grad, const Unscaling& unscaling, float& power_sum, int32_t& abs_max_bits) {
  const float x = grad * unscaling.inv_scale;
  const int32_t abs_bits = float_bits(x) & 0x7fffffff;
  abs_max_bits = abs_bits > abs_max_bits ? abs_bits : abs_max_bits;
  const float clamped = clamp_grad(x, unscaling.clip_value);
  if constexpr (kNorm == NormType::kL1) power_sum += fabsf(clamped);
  if constexpr (kNorm == NormType::kL2) power_sum += clamped * clamped;
}

// |x / power_scale|^p, for the second look at a chunk. For p = 2 the scale is a power of two and the quotient exact.
GRADOPS_HD float power_in_scale(float grad, const Unscaling& unscaling, float power_scale, float p) {
  const float x = fabsf(clamp_grad(grad * unscaling.inv_scale, unscaling.clip_value)) / power_scale;
  if (p == 2.0f) return x * x;
  return p == 1.0f ? x : powf(x, p);
}

struct ChunkStats {
  float power_sum = 0.0f;
  float scale = 1.0f;
  int32_t abs_max_bits = 0;  // before clip_value
  int32_t nonfinite = 0;
};

GRADOPS_HD float largest_clamped(int32_t abs_max_bits, float clip_value) {
  const float abs_max = bits_float(abs_max_bits);
  return abs_max > clip_value ? clip_value : abs_max;
}

// Whether the plain float32 sum lost something. A square below 2^-126 may vanish; 2^13 of them stay below 2^-32 of a
// sum of 2^-80.
template <NormType kNorm>
GRADOPS_HD bool needs_scale(float power_sum, int32_t abs_max_bits) {
  if (abs_max_bits == 0 || abs_max_bits >= kInfBits || kNorm == NormType::kInf) return false;
  if (kNorm == NormType::kGeneral) return true;
  const bool finite = power_sum <= 3.402823466e38f;
  return !finite || (kNorm == NormType::kL2 && power_sum < 0x1p-80f);
}

// The scale for a chunk with this largest element. Kept a normal number: dividing by a subnormal would overflow.
template <NormType kNorm>
GRADOPS_HD float scale_for(float largest) {
  const float normal = largest < 0x1p-126f ? 0x1p-126f : largest;
  return kNorm == NormType::kGeneral ? normal : bits_float(float_bits(normal) & kInfBits);
}

// Sums of powers over many chunks: sum(|x|^p) = sum * scale^p.
struct PowerSum {
  double sum = 0.0;
  double scale = 1.0;

  GRADOPS_HD static double power(double x, double p) { return p == 2.0 ? x * x : p == 1.0 ? x : pow(x, p); }

  GRADOPS_HD void merge(double other_sum, double other_scale, double p) {
    if (other_sum == 0.0) return;
    if (sum == 0.0) {
      sum = other_sum;
      scale = other_scale;
    } else if (other_scale == scale) {
      sum += other_sum;
    } else if (other_scale < scale) {
      sum += other_sum * power(other_scale / scale, p);
    } else {
      sum = other_sum + sum * power(scale / other_scale, p);
      scale = other_scale;
    }
  }

  GRADOPS_HD double norm(double p) const {
    if (sum == 0.0) return 0.0;
    return scale * (p == 2.0 ? sqrt(sum) : p == 1.0 ? sum : pow(sum, 1.0 / p));
  }
};

// Statistics of one parameter, or of all of them.
struct GradStats {
  PowerSum power;
  int32_t abs_max_bits = 0;
  int64_t nonfinite = 0;

  GRADOPS_HD void merge(const ChunkStats& chunk, double p) {
    power.merge(chunk.power_sum, chunk.scale, p);
    abs_max_bits = chunk.abs_max_bits > abs_max_bits ? chunk.abs_max_bits : abs_max_bits;
    nonfinite += chunk.nonfinite;
  }

  GRADOPS_HD void merge(const GradStats& other, double p) {
    power.merge(other.power.sum, other.power.scale, p);
    abs_max_bits = other.abs_max_bits > abs_max_bits ? other.abs_max_bits : abs_max_bits;
    nonfinite += other.nonfinite;
  }

  // NaN if any element is NaN, else inf if any is inf, else the largest absolute value.
  GRADOPS_HD float abs_max() const { return bits_float(abs_max_bits); }

  // The norm of the clamped values; NaN or inf as abs_max() where an element is not finite.
  GRADOPS_HD double norm(double p, float clip_value) const {
    if (nonfinite != 0) return abs_max();
    return std::isinf(p) ? largest_clamped(abs_max_bits, clip_value) : power.norm(p);
  }
};

}  // namespace gradops
