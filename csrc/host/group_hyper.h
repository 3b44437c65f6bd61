// A param group's hyper-parameters, read anew at each step.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "host/step_backend.h"
#include "host/update_rules.h"

namespace gradops {

// A value of a group: `key`, or an item of the sequence under it.
struct GroupKey {
  PyObject* key;  // interned, and never freed
  Py_ssize_t item = -1;

  // "betas.0" is the first of betas.
  explicit GroupKey(const std::string& text);
};

class GroupReader {
 public:
  // `decoupled` is empty for a rule whose weight decay is of the one kind that `always_decouples` says.
  GroupReader(const UpdateRuleInfo& rule, const std::vector<std::string>& hyper, const std::string& decoupled,
              bool always_decouples);

  // Raises RuntimeError, TypeError or ValueError, naming the key, for a group that lacks one or has
  // something else under it. `l1` is that of the settings.
  GroupHyper read(const py::dict& group, at::Device device, double l1) const;

 private:
  const UpdateRuleInfo& rule_;
  std::vector<GroupKey> hyper_;
  PyObject* decoupled_ = nullptr;
  bool always_decouples_;
};

// The value under `key`. Raises RuntimeError for a group that has none.
PyObject* group_entry(const py::dict& group, PyObject* key);

}  // namespace gradops
