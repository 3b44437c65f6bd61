#include "host/param_row.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

#include "host/checks.h"
#include "host/containers.h"

namespace gradops {
namespace {

// The tensor under `key`; undefined where the dict has none, or None, and it is `optional`.
at::Tensor state_entry(const py::dict& state, const char* key, const std::string& name, const Exchange* exchange,
                       bool optional = false) {
  PyObject* value = PyDict_GetItemString(state.ptr(), key);
  if (optional && (value == nullptr || value == Py_None)) return {};
  TORCH_CHECK(value != nullptr && THPVariable_Check(value), "gradops: the state of '", name, "' has no tensor '", key,
              "'; load a complete state, or clear this parameter's");
  return THPVariable_Unpack(exchange == nullptr ? value : exchange->local(value).ptr());
}

// For the few numbers of a shape, cheaper than the library call that == makes.
bool same(at::IntArrayRef a, at::IntArrayRef b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

// The three cache lines of a tensor's object that hold its storage, its shape and its type.
void prefetch_tensor(const at::Tensor& tensor) {
  const char* impl = reinterpret_cast<const char*>(tensor.unsafeGetTensorImpl());
  for (int line = 0; line < 3; ++line) __builtin_prefetch(impl + 64 * line);
}

}  // namespace

void LinkedTensor::link(const at::Tensor& tensor, const at::Tensor& param, const std::vector<int64_t>& order,
                        const char* role, const std::string& name, const char* way_out) {
  check_like(tensor, param, role, name, way_out);
  check_writable(tensor, role, name);
  tensor_ = tensor;
  data_ = address_of(tensor);
  dtype_ = *kernel_dtype(tensor.scalar_type());
  layout_ = layout_in(order, tensor);
}

void LinkedNumber::link(const at::Tensor& tensor, at::Device device, const char* key, const std::string& name) {
  TORCH_CHECK(tensor.device() == device && tensor.scalar_type() == at::kFloat && tensor.numel() == 1, "gradops: ", key,
              " of '", name, "' must be one Float on ", device, ", got ", tensor.toString(), " of shape ",
              tensor.sizes());
  tensor_ = tensor;
  data_ = tensor.data_ptr<float>();
}

ParamRow::ParamRow(py::handle param, std::string name, int64_t group, at::Device device, const StateKeys& state,
                   const Exchange* exchange)
    : object_(py::reinterpret_borrow<py::object>(param)),
      whole_(THPVariable_Unpack(param.ptr())),
      param_(exchange == nullptr ? whole_ : THPVariable_Unpack(exchange->local(param.ptr()).ptr())),
      group_(group),
      name_(std::move(name)),
      device_(device),
      keys_(state) {
  if (whole_.requires_grad() || has_grad()) link_param();
}

bool ParamRow::param_moved() const {
  return !checked_ || address_of(param_) != data_ || param_.scalar_type() != dtype_ || !same(param_.sizes(), sizes_) ||
         !same(param_.strides(), strides_);
}

void ParamRow::link_param() {
  check_tensor(param_, device_, "parameter", name_);
  check_writable(param_, "parameter", name_);
  const bool new_shape = !checked_ || sizes_ != param_.sizes() || strides_ != param_.strides();
  checked_ = true;
  relinked_ = true;
  data_ = address_of(param_);
  forget_values();
  state_stale_ |= dtype_ != param_.scalar_type();
  dtype_ = param_.scalar_type();
  if (!new_shape) return;
  sizes_ = c10::DimVector(param_.sizes());
  strides_ = c10::DimVector(param_.strides());
  order_ = memory_order(param_);
  layout_ = layout_in(order_, param_);
  grad_type_ = at::ScalarType::Undefined;
  state_stale_ = true;
}

void ParamRow::link_grad(const at::Tensor& grad) {
  check_like(grad, param_, "grad", name_);
  grad_keys_ = grad.key_set();
  grad_type_ = grad.scalar_type();
  grad_strides_ = c10::DimVector(grad.strides());
  grad_layout_ = layout_in(order_, grad);
  relinked_ = true;
}

void ParamRow::prefetch_shard(int hop, const Exchange& exchange) const {
  if (!is_shard()) return;
  if (hop == 0) {
    __builtin_prefetch(object_.ptr());
    __builtin_prefetch(whole_.unsafeGetTensorImpl());
    return;
  }
  const c10::TensorImpl& whole = *whole_.unsafeGetTensorImpl();
  if (hop == 1) {
    __builtin_prefetch(exchange.peek_local(object_.ptr()));
    __builtin_prefetch(whole.autograd_meta());
    prefetch_tensor(param_);
    return;
  }
  if (!whole.grad().defined()) return;
  if (hop == 2) return __builtin_prefetch(whole.grad().unsafeGetTensorImpl()->pyobj_slot());
  PyObject* grad = object_of(whole.grad());
  if (hop == 3) return __builtin_prefetch(grad);
  if (grad == nullptr || !exchange.is_dtensor(grad)) return;
  PyObject* local = exchange.peek_local(grad);
  if (hop == 4) return __builtin_prefetch(local);
  if (local != nullptr) prefetch_tensor(THPVariable_Unpack(local));
}

void ParamRow::follow_shard(const Exchange& exchange) {
  const at::Tensor& grad = whole_.unsafeGetTensorImpl()->grad();
  if (!is_shard() || !grad.defined()) return;
  if (!exchange.is_local(param_, object_.ptr())) {
    const py::object object = exchange.local(object_.ptr());
    const at::Tensor& local = THPVariable_Unpack(object.ptr());
    if (!local.is_same(param_)) {
      param_ = local;
      grad_spec_ = py::object();
    }
  }
  local_grad_ = exchange.local_grad(object_.ptr(), grad, grad_spec_);
}

const at::Tensor& ParamRow::grad() const {
  static const at::Tensor none;
  if (!is_shard()) return param_.unsafeGetTensorImpl()->grad();
  return local_grad_ ? THPVariable_Unpack(local_grad_.ptr()) : none;
}

bool ParamRow::follow(cpu::TensorRow& views) {
  const at::Tensor& grad = this->grad();
  if (!grad.defined()) return false;
  if (param_moved()) link_param();
  // The keys first: of a sparse tensor not even the address may be asked.
  const bool known = grad.key_set() == grad_keys_ && grad.scalar_type() == grad_type_ && same(grad.sizes(), sizes_) &&
                     same(grad.strides(), grad_strides_) && address_of(grad) != nullptr;
  if (!known) link_grad(grad);
  views[kGrad].data = address_of(grad);
  return true;
}

Units ParamRow::units() const {
  if (sizes_.size() <= 1) return {std::max<int64_t>(1, param_.numel()), 1};
  int64_t run = 1;
  for (auto dim = order_.rbegin(); *dim != 0; ++dim) run *= sizes_[*dim];
  return {run, sizes_[0]};
}

void ParamRow::prefetch_tensors() const {
  prefetch_tensor(param_);
  for (const LinkedTensor& tensor : state_) {
    if (tensor.defined()) prefetch_tensor(tensor.tensor());
  }
}

void ParamRow::prefetch_pointees() const {
  __builtin_prefetch(param_.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  for (const LinkedTensor& tensor : state_) {
    if (tensor.defined()) {
      __builtin_prefetch(tensor.tensor().unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
    }
  }
  __builtin_prefetch(param_.unsafeGetTensorImpl()->autograd_meta());
}

void ParamRow::prefetch_grad() const { prefetch_tensor(grad()); }

void ParamRow::bind_state(py::handle state, const Exchange* exchange) {
  step_.forget();
  state_stale_ = true;
  relinked_ = true;
  state_object_ = py::reinterpret_borrow<py::object>(state);
  state_values_.clear();
  const py::dict entries = state.is_none() ? py::dict() : as_dict(state.ptr(), "the state", name_);
  for (const auto item : entries) state_values_.push_back(py::reinterpret_borrow<py::object>(item.second));
  if (!state_values_.empty()) {
    if (!has_grad()) return;
    link_state(entries, exchange);
  }
  state_stale_ = false;
}

void ParamRow::link_state(const py::dict& state, const Exchange* exchange) {
  const auto link = [&](Slot slot, const char* key, bool optional, const char* way_out) {
    const at::Tensor tensor = state_entry(state, key, name_, exchange, optional);
    state_[slot] = LinkedTensor();
    if (tensor.defined()) state_[slot].link(tensor, param_, order_, key, name_, way_out);
  };
  const std::vector<Moment>& moments = keys_.moments;
  for (size_t i = 0; i < moments.size(); ++i) {
    link(moment_slot(static_cast<int>(i)), moments[i].name.c_str(), !moments[i].because.empty(),
         "; give it the parameter's shape, or clear this parameter's state");
  }
  constexpr const char* kDelete = "; delete this entry of its state, so that it is made anew";
  link(kMaster, "master", true, kDelete);
  link(kCompensation, "compensation", true, kDelete);
  link(kEma, "ema", true, kDelete);
  check_entry(kEma, "ema", at::kFloat);
  link_unrounded();
  for (const std::string& key : keys_.scalars) {
    scalar_.link(state_entry(state, key.c_str(), name_, exchange), device_, key.c_str(), name_);
  }
  step_.link(state_entry(state, "step", name_, exchange), device_, "step", name_);
}

void ParamRow::check_entry(Slot entry, const char* key, at::ScalarType expected) const {
  if (!state_[entry].defined()) return;
  const at::ScalarType type = state_[entry].tensor().scalar_type();
  TORCH_CHECK(type == expected, "gradops: ", key, " of '", name_, "' is ", type, "; expected ", expected);
}

void ParamRow::link_unrounded() {
  if (!state_depends_on_values()) return;
  check_entry(kMaster, "master", at::kFloat);
  check_entry(kCompensation, "compensation", dtype_);
  values_version_ = param_._version();
  forget_squares();
}

bool ParamRow::state_is(PyObject* state) const {
  if (state != state_object_.ptr()) return false;
  if (state == Py_None) return true;
  const py::object copied = PyDict_Check(state) ? py::object() : as_dict(state, "the state", name_);
  if (copied) state = copied.ptr();
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  size_t seen = 0;
  for (Py_ssize_t position = 0; PyDict_Next(state, &position, &key, &value); ++seen) {
    if (seen >= state_values_.size() || value != state_values_[seen].ptr()) return false;
  }
  return seen == state_values_.size();
}

bool ParamRow::state_moved() const {
  if (state_stale_) return true;
  if (!has_state()) return false;
  if (state_depends_on_values() && values_version_ != param_._version()) return true;
  for (const LinkedTensor& tensor : state_) {
    if (tensor.defined() && tensor.moved()) return true;
  }
  return step_.moved() || scalar_.moved();
}

void ParamRow::set_param_views(cpu::TensorRow& views) const {
  const cpu::TensorView param{data_, layout_.get(), *kernel_dtype(dtype_)};
  views.numel = param_.numel();
  views[kParam] = has_master() ? state_[kMaster].view() : param;
  views[kRounded] = has_master() ? param : cpu::TensorView();
  views[kCompensation] = state_[kCompensation].view();
  views[kEma] = state_[kEma].view();
  views[kGrad].layout = grad_layout_.get();
  views[kGrad].dtype = *kernel_dtype(grad_type_);
}

void ParamRow::set_squares(const PowerSum& squares) {
  squares_ = squares;
  squares_version_ = param_._version();
  squares_known_ = true;
}

}  // namespace gradops
