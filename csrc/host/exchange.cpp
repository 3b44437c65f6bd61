#include "host/exchange.h"

#include <structmember.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

namespace gradops {
namespace {

py::object attribute(PyObject* object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object, name);
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

// Whether both are spread alike.
bool same_placements(PyObject* spec, PyObject* other) {
  static PyObject* const placements = PyUnicode_InternFromString("placements");
  const py::object mine = attribute(spec, placements), theirs = attribute(other, placements);
  return mine.equal(theirs);
}

}  // namespace

PyObject* object_of(const at::Tensor& tensor) {
  const auto find = [](const auto* slot) {
    if constexpr (requires { slot->load_pyobj(); }) {
      return slot->load_pyobj();
    } else {
      return slot->_unchecked_untagged_pyobj();
    }
  };
  return find(tensor.unsafeGetTensorImpl()->pyobj_slot());
}

Attribute::Attribute(py::handle type, const char* name) : name_(PyUnicode_InternFromString(name)) {
  const py::object place = py::getattr(type, name, py::none());
  if (!Py_IS_TYPE(place.ptr(), &PyMemberDescr_Type)) return;
  const PyMemberDef& member = *reinterpret_cast<PyMemberDescrObject*>(place.ptr())->d_member;
  if (member.type == T_OBJECT_EX) offset_ = member.offset;
}

py::object Attribute::of(PyObject* object) const {
  PyObject* value = peek(object);
  return value == nullptr ? attribute(object, name_) : py::reinterpret_borrow<py::object>(value);
}

Exchange::Exchange(py::object dtensor, py::object local_tensor, py::object local_grad, py::object gather,
                   py::object counts, int64_t processes)
    : dtensor_(std::move(dtensor)),
      local_tensor_(std::move(local_tensor)),
      local_grad_(std::move(local_grad)),
      gather_(std::move(gather)),
      counts_(std::move(counts)),
      local_slot_(dtensor_, "_local_tensor"),
      spec_slot_(dtensor_, "_spec"),
      processes_(processes) {}

py::object Exchange::local(PyObject* tensor) const {
  if (!is_dtensor(tensor)) return py::reinterpret_borrow<py::object>(tensor);
  py::object local = local_slot_.of(tensor);
  // An exact tensor waits for nobody.
  return THPVariable_CheckExact(local.ptr()) ? local : local_tensor_(py::handle(tensor));
}

bool Exchange::is_local(const at::Tensor& local, PyObject* dtensor) const {
  PyObject* held = peek_local(dtensor);
  return held != nullptr && THPVariable_CheckExact(held) && THPVariable_Unpack(held).is_same(local);
}

py::object Exchange::local_grad(PyObject* param, const at::Tensor& grad, py::object& known) const {
  PyObject* const object = object_of(grad);
  if (object == nullptr || !is_dtensor(object)) return local_grad_(py::handle(param));
  PyObject* spec = spec_slot_.peek(object);
  if (spec == nullptr || spec != known.ptr()) {
    py::object mine = spec_slot_.of(param), theirs = spec_slot_.of(object);
    if (!mine.is(theirs) && !same_placements(mine.ptr(), theirs.ptr())) {
      return local_grad_(py::handle(param));
    }
    known = std::move(theirs);
  }
  return local(object);
}

Exchange::Gathered Exchange::gather(const at::Tensor& numbers, const std::string& kinds, double norm_type) const {
  const py::gil_scoped_acquire acquire;
  Gathered gathered{gather_(numbers, kinds, norm_type).cast<at::Tensor>(), {}};
  if (gathered.numbers.size(0) == processes_) gathered.counts = counts_(numbers.device()).cast<at::Tensor>();
  return gathered;
}

}  // namespace gradops
