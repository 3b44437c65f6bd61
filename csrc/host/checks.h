// From at::Tensor to what the kernels take, and every reason to refuse one.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>

#include "cpu/tensor_view.h"

namespace gradops {

// The order in which a parameter's elements are walked: its dimensions from the outermost in memory to the innermost.
std::vector<int64_t> memory_order(const at::Tensor& tensor);

// How to walk `tensor` in `order`; nothing where its memory is one run in that order.
std::unique_ptr<cpu::Layout> layout_in(const std::vector<int64_t>& order, const at::Tensor& tensor);

// Nothing for a dtype that the kernels do not take.
std::optional<Dtype> kernel_dtype(at::ScalarType type);

// Raises RuntimeError, saying that `role` of parameter `name` cannot be used and why: not strided, a tensor subclass,
// not on `device`, not float32, bfloat16 or float16.
void check_tensor(const at::Tensor& tensor, at::Device device, const char* role, const std::string& name);

// The same, and `tensor` has the shape of `param`; `way_out`, what a user can do about another, ends the message.
void check_like(const at::Tensor& tensor, const at::Tensor& param, const char* role, const std::string& name,
                const char* way_out = "");

// The same for a tensor that is written: no inference tensor, and no two of its elements share memory.
void check_writable(const at::Tensor& tensor, const char* role, const std::string& name);

// The arguments of two operators, on every device.
void check_loss_scale(const at::Tensor& scale, const at::Tensor& growth_tracker);
void check_activations(const at::Tensor& x, double near_zero);

}  // namespace gradops
