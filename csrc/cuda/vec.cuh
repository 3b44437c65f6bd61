// The elements of a tensor: 128 bits at a time where it allows it, one by one where it is misaligned, strided or has an
// odd tail; float32 in the kernel, whatever is stored.
#pragma once

#include "cuda/memory.cuh"
#include "cuda/step_args.h"

namespace gradops::cuda {

template <Dtype kDtype>
GRADOPS_DEVICE float widen(uint32_t bits) {
  if constexpr (kDtype == Dtype::kBFloat16) return bits_float(static_cast<int32_t>(bits << 16));
  return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
}

template <Dtype kDtype>
GRADOPS_DEVICE uint32_t narrow(float x) {
  if constexpr (kDtype == Dtype::kBFloat16) return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  return __half_as_ushort(__float2half_rn(x));
}

// Which 16 elements of a piece are a thread's: four quads, two in each half of the piece. Where float32 alone is
// stored, neighbouring threads take neighbouring quads; where 16-bit elements are, a thread takes eight neighbours, 128
// bits of them. `element` is the first of a quad.
struct Lanes {
  static constexpr int kQuads = 4;
  static constexpr int kHalf = kPiece / 2;
  int32_t base;
  int32_t step;

  GRADOPS_DEVICE explicit Lanes(bool octets) {
    const int32_t lane = threadIdx.x % 32;
    base = lane * (octets ? 8 : 4);
    step = octets ? 4 : kHalf / 2;
  }
  GRADOPS_DEVICE bool octets() const { return step == 4; }
  GRADOPS_DEVICE int32_t element(int quad) const { return (quad / 2) * kHalf + base + (quad % 2) * step; }
};

// Elements [begin, begin + n) of a tensor, n at most kPiece.
struct Stretch {
  View view;
  int64_t begin;
  int32_t n;

  GRADOPS_DEVICE int width() const { return view.dtype == Dtype::kFloat32 ? 4 : 2; }
  GRADOPS_DEVICE char* at(int32_t element) const { return static_cast<char*>(view.data) + (begin + element) * width(); }
  GRADOPS_DEVICE bool in_vectors() const {
    const bool aligned = reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
    return view.layout == nullptr && aligned && n % (16 / width()) == 0;
  }

  // Where in memory an element lies, counted in elements.
  GRADOPS_DEVICE int64_t place(int32_t element) const {
    uint64_t index = begin + element;
    if (view.layout == nullptr) return index;
    int64_t offset = 0;
#pragma unroll 1
    for (int64_t dim = load(view.layout); dim > 0; --dim) {
      const uint64_t size = load(view.layout + 2 * dim - 1);
      const uint64_t rest = index / size;
      offset += static_cast<int64_t>(index - rest * size) * load(view.layout + 2 * dim);
      index = rest;
    }
    return offset;
  }

  GRADOPS_DEVICE float load_at(int64_t place) const {
    if (view.dtype == Dtype::kFloat32) return load(static_cast<const float*>(view.data) + place);
    const uint32_t bits = load(static_cast<const uint16_t*>(view.data) + place);
    return view.dtype == Dtype::kBFloat16 ? widen<Dtype::kBFloat16>(bits) : widen<Dtype::kFloat16>(bits);
  }

  GRADOPS_DEVICE void store_at(int64_t place, float x) const {
    if (view.dtype == Dtype::kFloat32) return store(static_cast<float*>(view.data) + place, x);
    const uint32_t bits = view.dtype == Dtype::kBFloat16 ? narrow<Dtype::kBFloat16>(x) : narrow<Dtype::kFloat16>(x);
    store(static_cast<uint16_t*>(view.data) + place, static_cast<uint16_t>(bits));
  }
};

template <Dtype kDtype>
GRADOPS_DEVICE void unpack(uint4 raw, float* x) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kDtype == Dtype::kFloat32) {
      x[i] = bits_float(static_cast<int32_t>(words[i]));
    } else {
      x[2 * i] = widen<kDtype>(words[i] & 0xffff);
      x[2 * i + 1] = widen<kDtype>(words[i] >> 16);
    }
  }
}

template <Dtype kDtype>
GRADOPS_DEVICE uint4 pack(const float* x) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kDtype == Dtype::kFloat32) {
      words[i] = static_cast<uint32_t>(float_bits(x[i]));
    } else {
      words[i] = narrow<kDtype>(x[2 * i]) | narrow<kDtype>(x[2 * i + 1]) << 16;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// All loads are issued before the first value is converted.
template <Dtype kDtype, int kHalves, class Policy>
GRADOPS_DEVICE void load_vectors(const Stretch& from, int half, const Lanes& lanes, Policy policy, float* x) {
  constexpr int kQuadsAtOnce = kDtype == Dtype::kFloat32 ? 1 : 2;
  constexpr int kCount = 2 * kHalves / kQuadsAtOnce;
  uint4 raw[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int32_t element = lanes.element(2 * half + i * kQuadsAtOnce);
    raw[i] = element < from.n ? load_vec(from.at(element), policy) : uint4{0, 0, 0, 0};
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) unpack<kDtype>(raw[i], x + i * 4 * kQuadsAtOnce);
}

// A misaligned tensor or an odd tail: as many loads under way as with vectors, each of one element.
template <Dtype kDtype, int kHalves>
GRADOPS_DEVICE void load_scalars(const Stretch& from, int half, const Lanes& lanes, float* x) {
  using Word = std::conditional_t<kDtype == Dtype::kFloat32, float, uint16_t>;
  const Word* data = static_cast<const Word*>(from.view.data) + from.begin;
  Word raw[8 * kHalves];
#pragma unroll
  for (int i = 0; i < 8 * kHalves; ++i) {
    const int32_t element = lanes.element(2 * half + i / 4) + i % 4;
    raw[i] = element < from.n ? load(data + element) : Word{0};
  }
#pragma unroll
  for (int i = 0; i < 8 * kHalves; ++i) {
    if constexpr (kDtype == Dtype::kFloat32) x[i] = raw[i];
    if constexpr (kDtype != Dtype::kFloat32) x[i] = widen<kDtype>(raw[i]);
  }
}

// The loop is not unrolled: strides are rare, and each place takes a division for every dimension.
template <int kHalves>
GRADOPS_DEVICE void load_strided(const Stretch& from, int half, const Lanes& lanes, float* x) {
#pragma unroll 1
  for (int i = 0; i < 8 * kHalves; ++i) {
    const int32_t element = lanes.element(2 * half + i / 4) + i % 4;
    const float value = element < from.n ? from.load_at(from.place(element)) : 0.0f;
#pragma unroll
    for (int j = 0; j < 8 * kHalves; ++j) x[j] = i == j ? value : x[j];
  }
}

template <Dtype kDtype, int kHalves, class Policy>
GRADOPS_DEVICE void load_contiguous(const Stretch& from, int half, const Lanes& lanes, Policy policy, float* x) {
  if (from.in_vectors()) {
    load_vectors<kDtype, kHalves>(from, half, lanes, policy, x);
  } else {
    load_scalars<kDtype, kHalves>(from, half, lanes, x);
  }
}

// The thread's values of `kHalves` halves of a piece, from `half` on; 0 where the piece has ended.
template <int kHalves, class Policy>
GRADOPS_DEVICE void load_piece(const Stretch& from, int half, const Lanes& lanes, Policy policy,
                               float (&x)[8 * kHalves]) {
  if (from.view.layout != nullptr) return load_strided<kHalves>(from, half, lanes, x);
  if (from.view.dtype == Dtype::kFloat32) {
    load_contiguous<Dtype::kFloat32, kHalves>(from, half, lanes, policy, x);
  } else if (from.view.dtype == Dtype::kBFloat16) {
    load_contiguous<Dtype::kBFloat16, kHalves>(from, half, lanes, policy, x);
  } else {
    load_contiguous<Dtype::kFloat16, kHalves>(from, half, lanes, policy, x);
  }
}

// The same of a tensor that is `in_vectors`.
GRADOPS_DEVICE void load_half(const Stretch& from, int half, const Lanes& lanes, float (&x)[8]) {
  if (from.view.dtype == Dtype::kFloat32) return load_vectors<Dtype::kFloat32, 1>(from, half, lanes, UsedOnce(), x);
  if (from.view.dtype == Dtype::kBFloat16) return load_vectors<Dtype::kBFloat16, 1>(from, half, lanes, UsedOnce(), x);
  load_vectors<Dtype::kFloat16, 1>(from, half, lanes, UsedOnce(), x);
}

template <Dtype kDtype>
GRADOPS_DEVICE void store_vectors(const Stretch& to, int half, const Lanes& lanes, const float* x) {
  constexpr int kQuadsAtOnce = kDtype == Dtype::kFloat32 ? 1 : 2;
#pragma unroll
  for (int i = 0; i < 2 / kQuadsAtOnce; ++i) {
    const int32_t element = lanes.element(2 * half + i * kQuadsAtOnce);
    if (element < to.n) store_vec(to.at(element), pack<kDtype>(x + i * 4 * kQuadsAtOnce));
  }
}

GRADOPS_DEVICE void store_half(const Stretch& to, int half, const Lanes& lanes, const float (&x)[8]) {
  if (to.view.dtype == Dtype::kFloat32) return store_vectors<Dtype::kFloat32>(to, half, lanes, x);
  if (to.view.dtype == Dtype::kBFloat16) return store_vectors<Dtype::kBFloat16>(to, half, lanes, x);
  store_vectors<Dtype::kFloat16>(to, half, lanes, x);
}

// The same wherever the tensor lies.
GRADOPS_DEVICE void store_piece(const Stretch& to, int half, const Lanes& lanes, const float (&x)[8]) {
  if (to.in_vectors()) return store_half(to, half, lanes, x);
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const int32_t element = lanes.element(2 * half + i / 4) + i % 4;
    float value = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) value = i == j ? x[j] : value;
    if (element < to.n) to.store_at(to.place(element), value);
  }
}

// What reading back would give.
GRADOPS_DEVICE float as_stored(float x, Dtype dtype) {
  if (dtype == Dtype::kFloat32) return x;
  if (dtype == Dtype::kBFloat16) return widen<Dtype::kBFloat16>(narrow<Dtype::kBFloat16>(x));
  return widen<Dtype::kFloat16>(narrow<Dtype::kFloat16>(x));
}

}  // namespace gradops::cuda
