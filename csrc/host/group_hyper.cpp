#include "host/group_hyper.h"

#include <torch/csrc/autograd/python_variable.h>

#include "host/containers.h"

namespace gradops {
namespace {

double to_double(PyObject* value, PyObject* key) {
  if (THPVariable_Check(value)) return THPVariable_Unpack(value).item<double>();
  const double number = PyFloat_AsDouble(value);
  if (number != -1.0 || !PyErr_Occurred()) return number;
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
  throw py::type_error(c10::str("gradops: '", PyUnicode_AsUTF8(key), "' of a param_group must be a number, got ",
                                Py_TYPE(value)->tp_name));
}

// Whether a rate is a tensor that must be read on the device, since reading it here would wait for the device.
bool is_on_gpu(PyObject* rate, at::Device device) {
  return !device.is_cpu() && THPVariable_Check(rate) && THPVariable_Unpack(rate).device() == device;
}

double entry(const py::dict& group, PyObject* key) { return to_double(group_entry(group, key), key); }

bool flag(const py::dict& group, PyObject* key) {
  const int set = PyObject_IsTrue(group_entry(group, key));
  if (set < 0) throw py::error_already_set();
  return set == 1;
}

double value_of(const py::dict& group, const GroupKey& key) {
  if (key.item < 0) return entry(group, key.key);
  const char* name = PyUnicode_AsUTF8(key.key);
  const py::object items = as_sequence(group_entry(group, key.key), name);
  TORCH_CHECK(PySequence_Fast_GET_SIZE(items.ptr()) == 2, "gradops: ", name, " must be two numbers, got ",
              PySequence_Fast_GET_SIZE(items.ptr()));
  return to_double(PySequence_Fast_GET_ITEM(items.ptr(), key.item), key.key);
}

#define GRADOPS_INTERNED(NAME) static PyObject* const NAME = PyUnicode_InternFromString(#NAME)

}  // namespace

PyObject* group_entry(const py::dict& group, PyObject* key) {
  PyObject* value = find_entry(group, key);
  TORCH_CHECK(value != nullptr, "gradops: a param_group has no '", PyUnicode_AsUTF8(key), "'");
  return value;
}

GroupKey::GroupKey(const std::string& text) {
  const size_t dot = text.find('.');
  key = PyUnicode_InternFromString(text.substr(0, dot).c_str());
  if (dot != std::string::npos) item = std::stol(text.substr(dot + 1));
}

GroupReader::GroupReader(const UpdateRuleInfo& rule, const std::vector<std::string>& hyper,
                         const std::string& decoupled, bool always_decouples)
    : rule_(rule), hyper_(hyper.begin(), hyper.end()), always_decouples_(always_decouples) {
  if (!decoupled.empty()) decoupled_ = PyUnicode_InternFromString(decoupled.c_str());
}

GroupHyper GroupReader::read(const py::dict& group, at::Device device, double l1_of_settings) const {
  GRADOPS_INTERNED(agc);
  GRADOPS_INTERNED(l1);
  GRADOPS_INTERNED(lr);
  GRADOPS_INTERNED(weight_decay);
  GRADOPS_INTERNED(maximize);
  GroupHyper result;
  HyperParams& hyper = result.hyper;
  if (PyObject* rate = group_entry(group, lr); is_on_gpu(rate, device)) {
    result.lr = THPVariable_Unpack(rate);
  } else {
    hyper.lr = to_double(rate, lr);
  }
  for (size_t i = 0; i < hyper_.size(); ++i) hyper.own[i] = value_of(group, hyper_[i]);
  hyper.variant = rule_.variant(hyper);
  hyper.weight_decay = entry(group, weight_decay);
  hyper.l1 = find_entry(group, l1) == nullptr ? l1_of_settings : entry(group, l1);
  if (!(hyper.l1 >= 0.0 && std::isfinite(hyper.l1))) {
    throw py::value_error(c10::str("l1 must be finite and not negative, got ", hyper.l1));
  }
  result.clips_units = find_entry(group, agc) == nullptr || flag(group, agc);
  hyper.maximize = flag(group, maximize);
  const bool decouples = decoupled_ != nullptr ? flag(group, decoupled_) : always_decouples_;
  if (decouples) hyper.decay_kind = WeightDecay::kDecoupled;
  return result;
}

}  // namespace gradops
