// A tensor as the kernels see it: any dtype and layout in memory, chunks of contiguous float32 in the kernel.
#pragma once

#include <cstdint>
#include <vector>

namespace gradops::cpu {

enum class Dtype : uint8_t { kFloat32, kBFloat16, kFloat16 };

// The way through a tensor whose memory is not one run in the order of its elements: sizes and strides (in elements),
// outermost first. All tensors of a parameter are walked in the same order of elements.
struct Layout {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
};

struct TensorView {
  void* data = nullptr;
  const Layout* layout = nullptr;  // null: contiguous in the order of the elements
  Dtype dtype = Dtype::kFloat32;
};

// Elements [begin, begin + n) as contiguous float32: in place where they are that already, else copied to `scratch`
// (n floats). What is changed there reaches the tensor by store().
float* load(const TensorView& view, int64_t begin, int64_t n, float* scratch);

// Writes `values` back, rounded to nearest even; nothing to do where load() gave the place itself.
void store(const TensorView& view, int64_t begin, int64_t n, const float* values);

}  // namespace gradops::cpu
