#include "param_row.h"

#include <torch/csrc/autograd/python_variable.h>

#include "checks.h"

namespace gradops {
namespace {

// The tensor under `key`; undefined where the dict has none and it is `optional`.
at::Tensor state_entry(const py::dict& state, const char* key, const std::string& name, bool optional = false) {
  PyObject* value = PyDict_GetItemString(state.ptr(), key);
  if (value == nullptr && optional) return {};
  TORCH_CHECK(value != nullptr && THPVariable_Check(value), "gradops: the state of '", name, "' has no tensor '", key,
              "'; load a complete state, or clear this parameter's");
  return THPVariable_Unpack(value);
}

}  // namespace

void LinkedTensor::link(const at::Tensor& tensor, const at::Tensor& param, const std::vector<int64_t>& order,
                        const char* role, const std::string& name) {
  check_like(tensor, param, role, name);
  check_writable(tensor, role, name);
  tensor_ = tensor;
  data_ = tensor.data_ptr();
  dtype_ = *kernel_dtype(tensor.scalar_type());
  layout_ = layout_in(order, tensor);
}

ParamRow::ParamRow(py::handle param, std::string name, int64_t group)
    : object_(py::reinterpret_borrow<py::object>(param)),
      param_(THPVariable_Unpack(param.ptr())),
      name_(std::move(name)),
      group_(group) {
  link_param();
}

bool ParamRow::param_moved() const {
  return param_.const_data_ptr() != data_ || param_.scalar_type() != dtype_ || param_.sizes() != sizes_ ||
         param_.strides() != strides_;
}

void ParamRow::link_param() {
  check_tensor(param_, "parameter", name_);
  check_writable(param_, "parameter", name_);
  const bool new_shape = param_.sizes() != sizes_ || param_.strides() != strides_;
  data_ = param_.data_ptr();
  dtype_ = param_.scalar_type();
  squares_known_ = false;
  if (!new_shape) return;
  sizes_ = param_.sizes().vec();
  strides_ = param_.strides().vec();
  order_ = memory_order(param_);
  layout_ = layout_in(order_, param_);
  grad_layout_.reset();
  grad_strides_ = strides_;
  if (layout_ != nullptr) grad_strides_.clear();  // the gradient's way must be worked out even if it is the parameter's
  if (has_state()) bind_state(state_object_);     // the moments are walked in the parameter's new order
}

void ParamRow::link_grad(const at::Tensor& grad) {
  grad_layout_ = layout_in(order_, grad);
  grad_strides_ = grad.strides().vec();
}

bool ParamRow::follow(cpu::TensorRow& views) {
  if (param_moved()) link_param();
  const at::Tensor& grad = param_.grad();
  if (!grad.defined()) return false;
  check_like(grad, param_, "grad", name_);
  if (grad.strides() != grad_strides_) link_grad(grad);
  views.numel = param_.numel();
  views.param = {data_, layout_.get(), *kernel_dtype(dtype_)};
  views.grad = {const_cast<void*>(grad.const_data_ptr()), grad_layout_.get(), *kernel_dtype(grad.scalar_type())};
  return true;
}

void ParamRow::bind_state(py::handle state) {
  step_ = nullptr;
  state_object_ = py::reinterpret_borrow<py::object>(state);
  state_values_.clear();
  if (state.is_none() || py::len(state) == 0) return;
  const auto dict = py::reinterpret_borrow<py::dict>(state);
  for (const auto item : dict) state_values_.push_back(py::reinterpret_borrow<py::object>(item.second));

  constexpr const char* kKeys[kStateEntries] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  for (int i = 0; i < kStateEntries; ++i) {
    const at::Tensor tensor = state_entry(dict, kKeys[i], name_, i == kMaxExpAvgSq);
    state_[i] = LinkedTensor();
    if (tensor.defined()) state_[i].link(tensor, param_, order_, kKeys[i], name_);
  }
  step_tensor_ = state_entry(dict, "step", name_);
  TORCH_CHECK(step_tensor_.device().is_cpu() && step_tensor_.scalar_type() == at::kFloat && step_tensor_.numel() == 1,
              "gradops: step of '", name_, "' must be one Float on cpu, got ", step_tensor_.toString(), " of shape ",
              step_tensor_.sizes());
  step_ = step_tensor_.data_ptr<float>();
}

bool ParamRow::state_is(PyObject* state) const {
  if (state != state_object_.ptr()) return false;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  size_t seen = 0;
  for (Py_ssize_t position = 0; PyDict_Next(state, &position, &key, &value); ++seen) {
    if (seen >= state_values_.size() || value != state_values_[seen].ptr()) return false;
  }
  if (seen != state_values_.size()) return false;
  if (!has_state()) return true;
  for (const LinkedTensor& tensor : state_) {
    if (tensor.defined() && tensor.moved()) return false;
  }
  return step_tensor_.const_data_ptr() == step_;
}

void ParamRow::set_state_views(cpu::TensorRow& views, bool amsgrad) const {
  views.exp_avg = state_[kExpAvg].view();
  views.exp_avg_sq = state_[kExpAvgSq].view();
  views.max_exp_avg_sq = amsgrad ? state_[kMaxExpAvgSq].view() : cpu::TensorView();
}

void ParamRow::set_squares(const PowerSum& squares) {
  squares_ = squares;
  squares_version_ = param_._version();
  squares_known_ = true;
}

}  // namespace gradops
