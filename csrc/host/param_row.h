// One parameter of the optimizer: its tensors as Python knows them, linked to what the kernels take.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/DimVector.h>
#include <c10/util/SmallVector.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/multi_tensor.h"
#include "host/exchange.h"

namespace gradops {

namespace py = pybind11;

// Where a strided tensor's first element lies; at::Tensor's own accessor checks what check_tensor has checked.
inline void* address_of(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  char* start = static_cast<char*>(impl.unsafe_storage().unsafeGetStorageImpl()->mutable_data());
  return start == nullptr ? nullptr : start + impl.storage_offset() * impl.itemsize();
}

// A tensor that is linked once and watched at each step.
class LinkedTensor {
 public:
  // Raises RuntimeError if `tensor` cannot be walked as `param` is; `way_out` ends the message about another shape.
  void link(const at::Tensor& tensor, const at::Tensor& param, const std::vector<int64_t>& order, const char* role,
            const std::string& name, const char* way_out);
  bool moved() const { return address_of(tensor_) != data_; }
  bool defined() const { return tensor_.defined(); }
  const at::Tensor& tensor() const { return tensor_; }
  cpu::TensorView view() const { return {data_, layout_.get(), dtype_}; }

 private:
  at::Tensor tensor_;
  void* data_ = nullptr;
  Dtype dtype_ = Dtype::kFloat32;
  std::unique_ptr<cpu::Layout> layout_;
};

// A number of state, on the parameter's device, that is linked once and watched at each step.
class LinkedNumber {
 public:
  // Raises RuntimeError unless `tensor` is one float32 on `device`.
  void link(const at::Tensor& tensor, at::Device device, const char* key, const std::string& name);
  void forget() { data_ = nullptr; }
  bool moved() const { return data_ != nullptr && address_of(tensor_) != data_; }
  float* data() const { return data_; }

 private:
  at::Tensor tensor_;
  float* data_ = nullptr;
};

// A tensor of state that is shaped as the parameter and that the update moves, as Python's rule describes it.
struct Moment {
  std::string name;     // the key of the state
  std::string because;  // what makes a param group use it, for messages; empty for one that every group uses
};

// What a rule's state has of a parameter beside its step.
struct StateKeys {
  std::vector<Moment> moments;
  std::vector<std::string> scalars;  // one float32 each; one at most
};

class ParamRow {
 public:
  // Raises RuntimeError for a parameter that cannot be stepped and is to be trained, or has a gradient. Whatever else
  // is among the parameters, a frozen int8 weight say, may stay there.
  // `state`, which has no master and no compensation, outlives the row. With an `exchange` the parameter may be a
  // DTensor; all but its version and whether it has a gradient is then of its local tensor.
  ParamRow(py::handle param, std::string name, int64_t group, at::Device device, const StateKeys& state,
           const Exchange* exchange);

  const std::string& name() const { return name_; }
  int64_t group() const { return group_; }
  bool is(PyObject* param, int64_t group, at::Device device) const {
    return param == object_.ptr() && group == group_ && device == device_;
  }
  PyObject* object() const { return object_.ptr(); }
  void rename(const std::string& name) { name_ = name; }

  // Of a DTensor: takes the local tensors that it and its gradient have now; until let_go_of_shard.
  void follow_shard(const Exchange& exchange);
  // Starts to fetch what that will look at; each hop reads what the one before has fetched.
  static constexpr int kShardHops = 6;
  void prefetch_shard(int hop, const Exchange& exchange) const;
  void let_go_of_shard() { local_grad_ = py::object(); }

  // Elements of the whole parameter.
  int64_t whole_numel() const { return whole_.numel(); }
  // Whether it is a unit of its own for adaptive gradient clipping.
  bool is_one_unit() const { return sizes_.size() <= 1; }

  // Follows a parameter that has a gradient to where both are now; of `views` only the gradient's address. Raises
  // RuntimeError, with nothing changed, if one of them does not fit. Returns whether there is a gradient. Touches no
  // Python object, so any thread may call it.
  bool follow(cpu::TensorRow& views);

  // Whether a tensor was linked since set_views.
  bool relinked() const { return relinked_; }

  // Starts to fetch what follow() and state_moved() will look at. A network of thousands of small tensors is a
  // walk through as many objects, each a wait for memory: the tensors' objects, then what these point to, then the
  // gradient.
  void prefetch_tensors() const;
  void prefetch_pointees() const;
  void prefetch_grad() const;

  // Takes this parameter's state, or None. Raises RuntimeError if an entry is missing or does not fit; without a
  // gradient nothing is looked at, and the state has moved as soon as there is one.
  void bind_state(py::handle state, const Exchange* exchange);
  bool has_state() const { return step_.data() != nullptr; }
  bool has_moment(int moment) const { return state_[moment_slot(moment)].defined(); }

  // Whether `state` is what was bound, with the same entries. Their addresses are state_moved()'s to check.
  bool state_is(PyObject* state) const;
  bool state_moved() const;

  float* step() const { return step_.data(); }
  float* scalar() const { return scalar_.data(); }  // null for a rule that has none
  // Sets the views of all tensors but the gradient's address, of the moments those that `uses(moment)`.
  template <class Uses>
  void set_views(cpu::TensorRow& views, const Uses& uses) {
    for (int moment = 0; moment < kMaxMoments; ++moment) {
      const Slot slot = moment_slot(moment);
      views[slot] = uses(moment) ? state_[slot].view() : cpu::TensorView();
    }
    set_param_views(views);
    relinked_ = false;
  }

  // For autograd, and whoever watches the parameter: it was written. Its state still goes with its values.
  void bump_version() {
    param_.unsafeGetTensorImpl()->bump_version();
    if (is_shard()) whole_.unsafeGetTensorImpl()->bump_version();
    if (state_depends_on_values()) values_version_ = param_._version();
  }

  // What adaptive gradient clipping treats one by one: all that has one index in the first of several dimensions.
  Units units() const;

  // Keeps the gradient alive while other threads may run Python.
  void hold_grad(bool hold) { held_grad_ = hold ? grad() : at::Tensor(); }

  // The parameter's sum of squares, as long as nobody else wrote it.
  bool squares_known() const { return squares_known_ && squares_version_ == param_._version(); }
  const PowerSum& squares() const { return squares_; }
  void set_squares(const PowerSum& squares);
  void forget_squares() { squares_known_ = false; }

  // Somebody may have edited the parameter where no counter shows it.
  void forget_values() {
    forget_squares();
    state_stale_ |= state_depends_on_values();
  }

 private:
  // Where the master is among the state's tensors: it takes the parameter's place.
  static constexpr Slot kMaster = kParam;

  bool has_master() const { return state_[kMaster].defined(); }
  // Whether the state says what the parameter was before it was rounded.
  bool state_depends_on_values() const { return has_master() || state_[kCompensation].defined(); }
  bool is_shard() const { return !whole_.is_same(param_); }
  bool has_grad() const { return whole_.unsafeGetTensorImpl()->grad().defined(); }
  const at::Tensor& grad() const;
  bool param_moved() const;
  void link_param();
  void link_grad(const at::Tensor& grad);
  void link_state(const py::dict& state, const Exchange* exchange);
  // Raises RuntimeError for an entry of another type.
  void check_entry(Slot entry, const char* key, at::ScalarType expected) const;
  void link_unrounded();
  void set_param_views(cpu::TensorRow& views) const;

  // What every step looks at comes first, so that it is in few cache lines.
  py::object object_;
  at::Tensor whole_;       // what the optimizer has
  at::Tensor param_;       // what this process holds of it
  py::object local_grad_;  // counted as Python does, which costs less than a tensor's own count
  py::object grad_spec_;   // how a gradient is spread that is spread as the parameter is
  int64_t group_;
  void* data_ = nullptr;
  at::ScalarType dtype_ = at::kFloat;
  bool checked_ = false;  // whether data_, dtype_, sizes_ and what comes of them are known
  bool relinked_ = true;
  bool state_stale_ = false;  // to be bound anew: to another shape, order or dtype, to other values, or at all
  bool squares_known_ = false;
  uint32_t squares_version_ = 0;
  uint32_t values_version_ = 0;  // of the parameter that the state's unrounded values go with
  LinkedNumber step_, scalar_;
  py::object state_object_;
  c10::DispatchKeySet grad_keys_;
  at::ScalarType grad_type_ = at::ScalarType::Undefined;
  c10::DimVector sizes_;
  c10::DimVector strides_;
  c10::DimVector grad_strides_;  // as grad_keys_ and grad_type_ of the last gradient: another like it is not checked
  LinkedTensor state_[kSlots];
  c10::SmallVector<py::object, kSlots> state_values_;

  std::string name_;
  at::Device device_;
  const StateKeys& keys_;
  std::vector<int64_t> order_;
  std::unique_ptr<cpu::Layout> layout_, grad_layout_;
  at::Tensor held_grad_;
  PowerSum squares_;
};

}  // namespace gradops
