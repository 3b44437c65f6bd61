// What Python hands over as lists and dicts, of whatever kind it is.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace gradops {

namespace py = pybind11;

// `object` itself where it is a list or a tuple, else a list of its items: PySequence_Fast_* then walk it. Raises
// TypeError, saying `what` it is, for one that cannot be iterated.
py::object as_sequence(PyObject* object, const char* what);

// `object` itself where it is a dict, else a dict of its items. Raises TypeError, saying `what` of whom it is, for one
// that is no mapping.
py::dict as_dict(PyObject* object, const char* what, const std::string& of = "");

// The value under `key`; null where there is none.
PyObject* find_entry(const py::dict& dict, PyObject* key);

}  // namespace gradops
