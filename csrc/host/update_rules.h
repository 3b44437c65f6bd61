// The update rules as the host knows them, which is no template. No torch header.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "math/update.h"

namespace gradops {

namespace cuda {
struct RuleKernels;
}

struct UpdateRuleInfo {
  const char* name;  // gradops/update_rule.py's
  int moments;
  int scalars;  // beside the step: one or none
  int hypers;   // numbers of the rule's Hyper
  bool scale_free;
  bool (*adapts)(const HyperParams&, double step);
  int (*variant)(const HyperParams&);
  bool (*uses)(int variant, int moment);
  // What a row's gradient is multiplied by, as gradops::grad_factor; null for a rule that does not need norms.
  double (*grad_factor)(const HyperParams&, double lr, double param_norm, double grad_norm, int64_t numel);
  RowRule (*row_rule)(const HyperParams&, const RowStep&);
  float (*next_scalar)(const HyperParams&, double step, float scalar);  // null without
  cpu::UpdateChunk update_chunk;
  const cuda::RuleKernels* cuda;  // null where the build has none
};

// Every rule of this build.
std::span<const UpdateRuleInfo> update_rules();

// Throws std::invalid_argument, which Python sees as a ValueError, for a name that none has.
const UpdateRuleInfo& update_rule(const std::string& name);

}  // namespace gradops
