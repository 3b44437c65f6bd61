// A tensor as the kernels see it: any dtype and layout in memory, chunks of contiguous float32 in the kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "tensors.h"

namespace gradops::cpu {

// The way through a tensor whose memory is not one run in the order of its elements: sizes and strides (in elements),
// outermost first. All tensors of a parameter are walked in the same order of elements.
struct Layout {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
};

using TensorView = ViewOf<Layout>;

inline bool is_contiguous_float32(const TensorView& view) {
  return view.layout == nullptr && view.dtype == Dtype::kFloat32;
}

// Copies elements [begin, begin + n) to float32 and back; the way back rounds to nearest even.
void copy_in(const TensorView& view, int64_t begin, int64_t n, float* values);
void copy_out(const TensorView& view, int64_t begin, int64_t n, const float* values);

// Elements [begin, begin + n) as contiguous float32: in place where they are that already, else copied to `scratch`
// (n floats). What is changed there reaches the tensor by store().
inline float* load(const TensorView& view, int64_t begin, int64_t n, float* scratch) {
  if (is_contiguous_float32(view)) return static_cast<float*>(view.data) + begin;
  copy_in(view, begin, n, scratch);
  return scratch;
}

// Writes what load() gave back to the tensor; nothing to do where that was the tensor itself.
inline void store(const TensorView& view, int64_t begin, int64_t n, const float* values) {
  if (!is_contiguous_float32(view)) copy_out(view, begin, n, values);
}

}  // namespace gradops::cpu
