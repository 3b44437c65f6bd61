#include "host/containers.h"

#include <c10/util/StringUtil.h>

namespace gradops {
namespace {

[[noreturn]] void refuse(PyObject* object, const char* what, const std::string& of, const char* expected) {
  PyErr_Clear();
  throw py::type_error(c10::str("gradops: ", what, of.empty() ? "" : " of '" + of + "'", " must be a ", expected,
                                ", got ", Py_TYPE(object)->tp_name));
}

}  // namespace

py::object as_sequence(PyObject* object, const char* what) {
  PyObject* items = PySequence_Fast(object, "");
  if (items == nullptr && PyErr_ExceptionMatches(PyExc_TypeError)) refuse(object, what, "", "list or another sequence");
  if (items == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(items);
}

py::dict as_dict(PyObject* object, const char* what, const std::string& of) {
  if (PyDict_Check(object)) return py::reinterpret_borrow<py::dict>(object);
  if (!PyObject_HasAttrString(object, "keys")) refuse(object, what, of, "dict or another mapping");
  py::dict items;
  if (PyDict_Update(items.ptr(), object) != 0) throw py::error_already_set();
  return items;
}

PyObject* find_entry(const py::dict& dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict.ptr(), key);
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

}  // namespace gradops
