// A rule's update of one chunk on the CPU. Each rule compiles it in a file of its own, cpu/rules.
#pragma once

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace gradops::cpu {

template <UpdateRule Rule, int kVariant, WeightDecay kDecay, bool kL1, bool kMoved>
GRADOPS_HD void update_values(const ChunkValues& chunk, int64_t n, const StepDecision decision, const RowRule rule) {
  const auto coefs = own_numbers<typename Rule::Coefs>(rule.own);
  float* __restrict param = chunk.param;
  // Each by a name of its own, since a compiler takes only these for memory of their own.
  float* __restrict moment0 = chunk.moments[0];
  float* __restrict moment1 = chunk.moments[1];
  float* __restrict moment2 = chunk.moments[2];
  float* __restrict moved = chunk.moved;
  const float* __restrict grad = chunk.grad;
  constexpr auto has = [](int moment) { return moment < Rule::kMoments && Rule::uses(kVariant, moment); };
  for (int64_t i = 0; i < n; ++i) {
    const float before = param[i];
    float moments[Rule::kMoments] = {};
    if constexpr (has(0)) moments[0] = moment0[i];
    if constexpr (has(1)) moments[1] = moment1[i];
    if constexpr (has(2)) moments[2] = moment2[i];
    const float after = update_element<Rule, kVariant, kDecay, kL1>(before, grad[i], moments, decision, rule, coefs);
    param[i] = after;
    if constexpr (has(0)) moment0[i] = moments[0];
    if constexpr (has(1)) moment1[i] = moments[1];
    if constexpr (has(2)) moment2[i] = moments[2];
    if constexpr (kMoved) moved[i] = after - before;
  }
}

#define GRADOPS_UPDATE_TEMPLATE class Rule, int kVariant, WeightDecay kDecay, bool kL1, bool kMoved
#define GRADOPS_UPDATE_BODY update_values<Rule, kVariant, kDecay, kL1, kMoved>
GRADOPS_ISA_CLONES(UpdateValues, GRADOPS_UPDATE_BODY, GRADOPS_UPDATE_TEMPLATE, void,
                   (const ChunkValues& chunk, int64_t n, const StepDecision& decision, const RowRule& rule),
                   (chunk, n, decision, rule));

// Turns one property after the other into a template argument.
template <class Rule, int kVariant, bool... kProperties>
UpdateChunk compiled_for() {
  constexpr bool properties[] = {kProperties...};
  constexpr WeightDecay kDecay = properties[0] ? WeightDecay::kDecoupled : WeightDecay::kL2;
  return UpdateValues<Rule, kVariant, kDecay, properties[1], properties[2]>::table[static_cast<int>(current_isa())];
}

template <class Rule, int kVariant, bool... kProperties, class... Properties>
UpdateChunk compiled_for(bool next, Properties... others) {
  return next ? compiled_for<Rule, kVariant, kProperties..., true>(others...)
              : compiled_for<Rule, kVariant, kProperties..., false>(others...);
}

template <UpdateRule Rule>
void update_chunk(const ChunkValues& chunk, int64_t n, const StepDecision& decision, const RowRule& rule) {
  const UpdateChunk update = with_variant<Rule>(rule.variant, [&](auto variant) {
    return compiled_for<Rule, variant.value>(rule.decay_kind == WeightDecay::kDecoupled, rule.l1 != 0.0f,
                                             chunk.moved != nullptr);
  });
  update(chunk, n, decision, rule);
}

}  // namespace gradops::cpu
