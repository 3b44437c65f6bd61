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
  int hypers;  // numbers of the rule's Hyper
  bool scale_free;
  int (*variant)(const HyperParams&);
  bool (*uses)(int variant, int moment);
  RowRule (*row_rule)(const HyperParams&, double lr, double step);
  cpu::UpdateChunk update_chunk;
  const cuda::RuleKernels* cuda;  // null where the build has none
};

// Every rule of this build.
std::span<const UpdateRuleInfo> update_rules();

// Throws std::invalid_argument, which Python sees as a ValueError, for a name that none has.
const UpdateRuleInfo& update_rule(const std::string& name);

}  // namespace gradops
