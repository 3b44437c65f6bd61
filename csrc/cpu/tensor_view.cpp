#include "cpu/tensor_view.h"

#include <algorithm>
#include <cstring>

#include "cpu/isa.h"
#include "math/common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gradops::cpu {
namespace {

constexpr int kMaxDims = 64;  // torch's own limit

GRADOPS_HD float from_bfloat16(uint16_t bits) {
  return bits_float(static_cast<int32_t>(static_cast<uint32_t>(bits) << 16));
}

GRADOPS_HD uint16_t to_bfloat16(float x) {
  const uint32_t bits = static_cast<uint32_t>(float_bits(x));
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return x != x ? uint16_t{0x7fc0} : static_cast<uint16_t>(rounded >> 16);
}

// float16 by arithmetic on the bits of float32, for machines without F16C. Exact for every value.
GRADOPS_HD float from_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
  const bool special = (bits & 0x7c00) == 0x7c00;
  // The exponents' biases differ by 112: a product by 2^112 moves normal and subnormal numbers alike.
  const float number = bits_float(static_cast<int32_t>(magnitude)) * 0x1p112f;
  const uint32_t value = special ? (magnitude | 0x7f800000u) : static_cast<uint32_t>(float_bits(number));
  return bits_float(static_cast<int32_t>(value | sign));
}

GRADOPS_HD uint16_t to_float16(float x) {
  const uint32_t bits = static_cast<uint32_t>(float_bits(x));
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // from 65520 on it rounds to inf
  if (magnitude < 0x38800000) {  // subnormal in float16: let an addition of 0.5 do the rounding
    const float shifted = bits_float(static_cast<int32_t>(magnitude)) + 0.5f;
    return static_cast<uint16_t>(sign | (static_cast<uint32_t>(float_bits(shifted)) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000u;
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

template <Dtype kDtype>
GRADOPS_HD float widen(const void* data, int64_t i) {
  if constexpr (kDtype == Dtype::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return kDtype == Dtype::kBFloat16 ? from_bfloat16(bits) : from_float16(bits);
}

template <Dtype kDtype>
GRADOPS_HD void narrow(void* data, int64_t i, float x) {
  if constexpr (kDtype == Dtype::kFloat32) {
    static_cast<float*>(data)[i] = x;
  } else {
    static_cast<uint16_t*>(data)[i] = kDtype == Dtype::kBFloat16 ? to_bfloat16(x) : to_float16(x);
  }
}

template <Dtype kDtype>
GRADOPS_HD void widen_run(const void* data, int64_t begin, int64_t stride, int64_t n, float* __restrict out) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) out[i] = widen<kDtype>(data, begin + i);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = widen<kDtype>(data, begin + i * stride);
  }
}

template <Dtype kDtype>
GRADOPS_HD void narrow_run(void* data, int64_t begin, int64_t stride, int64_t n, const float* __restrict values) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) narrow<kDtype>(data, begin + i, values[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) narrow<kDtype>(data, begin + i * stride, values[i]);
  }
}

GRADOPS_ISA_CLONES(WidenRun, widen_run<kDtype>, Dtype kDtype, void,
                   (const void* data, int64_t begin, int64_t stride, int64_t n, float* out),
                   (data, begin, stride, n, out));
GRADOPS_ISA_CLONES(NarrowRun, narrow_run<kDtype>, Dtype kDtype, void,
                   (void* data, int64_t begin, int64_t stride, int64_t n, const float* values),
                   (data, begin, stride, n, values));

#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) void widen_float16(const uint16_t* data, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + i))));
  }
  for (; i < n; ++i) out[i] = from_float16(data[i]);
}

__attribute__((target("avx2,f16c"))) void narrow_float16(uint16_t* data, int64_t n, const float* values) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(data + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < n; ++i) data[i] = to_float16(values[i]);
}
#endif

void read_run(const TensorView& view, int64_t begin, int64_t stride, int64_t n, float* out) {
  const int isa = static_cast<int>(current_isa());
#if defined(__x86_64__)
  if (view.dtype == Dtype::kFloat16 && stride == 1 && current_isa() != Isa::kBaseline) {
    return widen_float16(static_cast<const uint16_t*>(view.data) + begin, n, out);
  }
#endif
  switch (view.dtype) {
    case Dtype::kFloat32:
      return WidenRun<Dtype::kFloat32>::table[isa](view.data, begin, stride, n, out);
    case Dtype::kBFloat16:
      return WidenRun<Dtype::kBFloat16>::table[isa](view.data, begin, stride, n, out);
    case Dtype::kFloat16:
      return WidenRun<Dtype::kFloat16>::table[isa](view.data, begin, stride, n, out);
  }
}

void write_run(const TensorView& view, int64_t begin, int64_t stride, int64_t n, const float* values) {
  const int isa = static_cast<int>(current_isa());
#if defined(__x86_64__)
  if (view.dtype == Dtype::kFloat16 && stride == 1 && current_isa() != Isa::kBaseline) {
    return narrow_float16(static_cast<uint16_t*>(view.data) + begin, n, values);
  }
#endif
  switch (view.dtype) {
    case Dtype::kFloat32:
      return NarrowRun<Dtype::kFloat32>::table[isa](view.data, begin, stride, n, values);
    case Dtype::kBFloat16:
      return NarrowRun<Dtype::kBFloat16>::table[isa](view.data, begin, stride, n, values);
    case Dtype::kFloat16:
      return NarrowRun<Dtype::kFloat16>::table[isa](view.data, begin, stride, n, values);
  }
}

// Calls run(begin in memory, stride, length, begin among the n elements) for each stretch of the innermost dimension.
template <class Run>
void for_each_run(const Layout& layout, int64_t begin, int64_t n, const Run& run) {
  const int last = static_cast<int>(layout.sizes.size()) - 1;
  int64_t index[kMaxDims];
  int64_t offset = 0;
  for (int dim = last; dim >= 0; --dim) {
    index[dim] = begin % layout.sizes[dim];
    begin /= layout.sizes[dim];
    offset += index[dim] * layout.strides[dim];
  }
  for (int64_t done = 0; done < n;) {
    const int64_t length = std::min(n - done, layout.sizes[last] - index[last]);
    run(offset, layout.strides[last], length, done);
    done += length;
    index[last] += length;
    offset += length * layout.strides[last];
    for (int dim = last; dim > 0 && index[dim] == layout.sizes[dim]; --dim) {
      offset += layout.strides[dim - 1] - index[dim] * layout.strides[dim];
      index[dim] = 0;
      ++index[dim - 1];
    }
  }
}

}  // namespace

void copy_in(const TensorView& view, int64_t begin, int64_t n, float* values) {
  if (view.layout == nullptr) return read_run(view, begin, 1, n, values);
  for_each_run(*view.layout, begin, n, [&](int64_t offset, int64_t stride, int64_t length, int64_t done) {
    read_run(view, offset, stride, length, values + done);
  });
}

void copy_out(const TensorView& view, int64_t begin, int64_t n, const float* values) {
  if (view.layout == nullptr) return write_run(view, begin, 1, n, values);
  for_each_run(*view.layout, begin, n, [&](int64_t offset, int64_t stride, int64_t length, int64_t done) {
    write_run(view, offset, stride, length, values + done);
  });
}

}  // namespace gradops::cpu
