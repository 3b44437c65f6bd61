#include "host/update_rules.h"

#include <algorithm>
#include <stdexcept>

#include "math/rules/adagrad.h"
#include "math/rules/adam.h"
#include "math/rules/adamax.h"
#include "math/rules/lars.h"
#include "math/rules/lion.h"
#include "math/rules/nadam.h"
#include "math/rules/radam.h"
#include "math/rules/rmsprop.h"
#include "math/rules/sgd.h"
#if defined(GRADOPS_WITH_CUDA) || defined(GRADOPS_EMULATE)
#define GRADOPS_HAS_KERNELS
#include "cuda/launch.h"
#endif

namespace gradops {

namespace {

template <UpdateRule Rule>
UpdateRuleInfo info_of(const char* name) {
  using Hyper = typename Rule::Hyper;
  UpdateRuleInfo info;
  info.name = name;
  info.moments = Rule::kMoments;
  info.scalars = RuleWithScalar<Rule> ? 1 : 0;
  info.hypers = sizeof(Hyper) / sizeof(double);
  info.scale_free = Rule::kScaleFree;
  info.adapts = &adapts<Rule>;
  info.variant = [](const HyperParams& hyper) {
    return static_cast<int>(Rule::variant(own_numbers<Hyper>(hyper.own)));
  };
  info.uses = &Rule::uses;
  info.grad_factor = nullptr;
  if constexpr (kNeedsNorms<Rule>) info.grad_factor = &grad_factor<Rule>;
  info.row_rule = &row_rule<Rule>;
  info.next_scalar = nullptr;
  if constexpr (RuleWithScalar<Rule>) info.next_scalar = &next_scalar<Rule>;
  info.update_chunk = &cpu::update_chunk<Rule>;
#ifdef GRADOPS_HAS_KERNELS
  info.cuda = &cuda::kernels_of<Rule>();
#else
  info.cuda = nullptr;
#endif
  return info;
}

// A new rule is named here, and has its files.
const UpdateRuleInfo kRules[] = {
    info_of<Adagrad>("adagrad"), info_of<Adam>("adam"),       info_of<Adamax>("adamax"),
    info_of<Lars>("lars"),       info_of<Lion>("lion"),       info_of<NAdam>("nadam"),
    info_of<RAdam>("radam"),     info_of<Rmsprop>("rmsprop"), info_of<Sgd>("sgd"),
};

}  // namespace

std::span<const UpdateRuleInfo> update_rules() { return kRules; }

const UpdateRuleInfo& update_rule(const std::string& name) {
  const auto* found =
      std::find_if(std::begin(kRules), std::end(kRules), [&](const auto& rule) { return name == rule.name; });
  if (found == std::end(kRules)) throw std::invalid_argument("gradops: this build has no update rule '" + name + "'");
  return *found;
}

}  // namespace gradops
