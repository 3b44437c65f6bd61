// The processes that hold parts of the same parameters (torch's DTensors), and what they exchange in a step.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <string>

namespace gradops {

namespace py = pybind11;

// Python's object of a tensor, not counted; null where there is none yet. torch has renamed what says it.
PyObject* object_of(const at::Tensor& tensor);

// An attribute that the objects of a class keep in a slot, as a DTensor does; or, in another torch, elsewhere.
class Attribute {
 public:
  Attribute(py::handle type, const char* name);

  // Borrowed, and not even counted; null where it lies elsewhere.
  PyObject* peek(PyObject* object) const {
    return offset_ == 0 ? nullptr : *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset_);
  }
  py::object of(PyObject* object) const;

 private:
  PyObject* name_;
  Py_ssize_t offset_ = 0;
};

// What Python's gradops.distributed.gather knows of them.
class Exchange {
 public:
  // `dtensor` is the class. `local_tensor` and `local_grad` are gradops.distributed.shards' functions, for what takes
  // communication; `gather` and `counts`, bool with a row a process and a column a parameter,
  // gradops.distributed.gather's.
  Exchange(py::object dtensor, py::object local_tensor, py::object local_grad, py::object gather, py::object counts,
           int64_t processes);

  bool is_dtensor(PyObject* tensor) const {
    return PyObject_TypeCheck(tensor, reinterpret_cast<PyTypeObject*>(dtensor_.ptr()));
  }

  // What this process holds of a DTensor; any other tensor itself.
  py::object local(PyObject* tensor) const;

  // Whether this is what local() would give of a DTensor; a quick look, which may miss it.
  bool is_local(const at::Tensor& local, PyObject* dtensor) const;

  // What a DTensor holds, borrowed; null where a quick look misses it.
  PyObject* peek_local(PyObject* dtensor) const { return local_slot_.peek(dtensor); }

  // This process's part of a DTensor's gradient, spread as the DTensor is. Raises RuntimeError where the gradient is
  // none. `known` keeps what was seen to be spread so; nothing else is compared as long as that stays.
  py::object local_grad(PyObject* param, const at::Tensor& grad, py::object& known) const;

  // What a gathering gives, on the device of what was handed in.
  struct Gathered {
    at::Tensor numbers;  // (processes, lines, columns); or, where the collective has merged them, one row
    at::Tensor counts;   // (processes, parameters): of replicas only the first one's count; undefined for one row
  };

  // May be called without the interpreter's lock. On a GPU nothing waits: the collective is on the current stream.
  // Raises what Python's does.
  Gathered gather(const at::Tensor& numbers, const std::string& kinds, double norm_type) const;

 private:
  py::object dtensor_, local_tensor_, local_grad_, gather_, counts_;
  Attribute local_slot_, spec_slot_;
  int64_t processes_;
};

}  // namespace gradops
