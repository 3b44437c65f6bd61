#include "host/checks.h"

#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <numeric>
#include <string_view>

namespace gradops {

std::vector<int64_t> memory_order(const at::Tensor& tensor) {
  std::vector<int64_t> order(tensor.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return tensor.stride(a) > tensor.stride(b); });
  return order;
}

std::unique_ptr<cpu::Layout> layout_in(const std::vector<int64_t>& order, const at::Tensor& tensor) {
  if (tensor.numel() == 0) return nullptr;
  cpu::Layout layout;
  for (const int64_t dim : order) {
    const int64_t size = tensor.size(dim);
    const int64_t stride = tensor.stride(dim);
    if (size == 1) continue;
    if (!layout.sizes.empty() && layout.strides.back() == stride * size) {
      layout.sizes.back() *= size;
      layout.strides.back() = stride;
    } else {
      layout.sizes.push_back(size);
      layout.strides.push_back(stride);
    }
  }
  const bool one_run = layout.sizes.empty() || (layout.sizes.size() == 1 && layout.strides[0] == 1);
  return one_run ? nullptr : std::make_unique<cpu::Layout>(std::move(layout));
}

std::optional<Dtype> kernel_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kHalf:
      return Dtype::kFloat16;
    default:
      return std::nullopt;
  }
}

void check_tensor(const at::Tensor& tensor, at::Device device, const char* role, const std::string& name) {
  // Keys of tensors whose memory is not, or not simply, the values that they stand for.
  constexpr c10::DispatchKeySet kNotPlain({c10::DispatchKey::Python, c10::DispatchKey::Negative,
                                           c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor});
  TORCH_CHECK(tensor.layout() == at::kStrided, "gradops: ", role, " of '", name, "' is ", tensor.layout(),
              "; only dense (strided) tensors are supported");
  TORCH_CHECK(!tensor.key_set().has_any(kNotPlain), "gradops: ", role, " of '", name,
              "' is a tensor subclass or a lazy view; only plain tensors are supported");
  TORCH_CHECK(!tensor.is_meta() || std::string_view(role) != "parameter", "gradops: ", role, " of '", name,
              "' is on meta; wrap after materialising it");
  TORCH_CHECK(tensor.device() == device, "gradops: ", role, " of '", name, "' is on ", tensor.device(), "; expected ",
              device);
  TORCH_CHECK(kernel_dtype(tensor.scalar_type()).has_value(), "gradops: ", role, " of '", name, "' is ",
              tensor.scalar_type(), "; expected Float, BFloat16 or Half");
  TORCH_CHECK(tensor.numel() == 0 || tensor.storage().data() != nullptr, "gradops: ", role, " of '", name,
              "' has no memory; its storage was freed");
}

void check_like(const at::Tensor& tensor, const at::Tensor& param, const char* role, const std::string& name,
                const char* way_out) {
  check_tensor(tensor, param.device(), role, name);
  TORCH_CHECK(tensor.sizes() == param.sizes(), "gradops: ", role, " of '", name, "' has shape ", tensor.sizes(),
              ", its parameter ", param.sizes(), way_out);
}

void check_writable(const at::Tensor& tensor, const char* role, const std::string& name) {
  TORCH_CHECK(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, "gradops: ", role, " of '", name,
              "' has elements that share memory (an expanded tensor?); clone it first");
  TORCH_CHECK(!tensor.is_inference(), "gradops: ", role, " of '", name,
              "' is an inference tensor, which cannot be updated; clone it outside inference mode");
}

void check_loss_scale(const at::Tensor& scale, const at::Tensor& growth_tracker) {
  TORCH_CHECK_VALUE(scale.scalar_type() == at::kFloat && scale.numel() == 1, "scale must be a single Float");
  TORCH_CHECK_VALUE(growth_tracker.scalar_type() == at::kLong && growth_tracker.numel() == 1,
                    "growth_tracker must be a single Long");
  TORCH_CHECK_VALUE(growth_tracker.device() == scale.device(), "growth_tracker must be on the device of scale, ",
                    scale.device(), ", got ", growth_tracker.device());
}

void check_activations(const at::Tensor& x, double near_zero) {
  TORCH_CHECK_VALUE(near_zero >= 0, "near_zero must not be negative, got ", near_zero);
  check_tensor(x, x.device(), "x", "activation_stats");
}

}  // namespace gradops
