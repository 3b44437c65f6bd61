// A rule's update of one chunk on the CPU. Each rule compiles it in a file of its own, cpu/rules.
#pragma once

#include "cpu/average.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/stat_lanes.h"

namespace gradops::cpu {

// Elements that are updated before anything else is done with them: so few that they are still at hand then.
constexpr int64_t kBlock = 256;

// Each array by a name of its own, since a compiler takes only these for memory of their own.
template <UpdateRule Rule, int kVariant, WeightDecay kDecay, bool kFull>
GRADOPS_HD void update_block(float* __restrict param, const float* __restrict grad, float* __restrict moment0,
                             float* __restrict moment1, float* __restrict moment2, float* __restrict moved, int64_t n,
                             const StepDecision& decision, const RowRule& rule, const typename Rule::Coefs& coefs) {
  constexpr auto has = [](int moment) { return moment < Rule::kMoments && Rule::uses(kVariant, moment); };
  for (int64_t i = 0; i < n; ++i) {
    float moments[Rule::kMoments] = {};
    if constexpr (has(0)) moments[0] = moment0[i];
    if constexpr (has(1)) moments[1] = moment1[i];
    if constexpr (has(2)) moments[2] = moment2[i];
    const float before = param[i];
    const float after = update_element<Rule, kVariant, kDecay, kFull>(before, grad[i], moments, decision, rule, coefs);
    param[i] = after;
    if constexpr (has(0)) moment0[i] = moments[0];
    if constexpr (has(1)) moment1[i] = moments[1];
    if constexpr (has(2)) moment2[i] = moments[2];
    if (moved != nullptr) moved[i] = after - before;  // a loop of its own
  }
}

GRADOPS_HD void gather(const float* values, int64_t n, StatLanes* lanes) {
  if (lanes != nullptr) add_to_kept_lanes<NormType::kL2>(values, n, Unscaling{}, *lanes);
}

template <UpdateRule Rule, int kVariant, WeightDecay kDecay, bool kFull>
GRADOPS_HD void update_values(const ChunkValues& chunk, int64_t count, const StepDecision decision,
                              const RowRule rule) {
  const auto coefs = own_numbers<typename Rule::Coefs>(rule.own);
  const auto from = [](float* values, int64_t begin) { return values == nullptr ? nullptr : values + begin; };
  const UpdateExtras& extras = chunk.extras;
  const bool alone = extras.averages == nullptr && extras.param_lanes == nullptr && extras.moved_lanes == nullptr;
  const int64_t block = alone ? count : kBlock;
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t n = count - begin < block ? count - begin : block;
    float* const param = chunk.param + begin;
    float* const moved = from(extras.moved, begin);
    float* const averages = from(extras.averages, begin);
    update_block<Rule, kVariant, kDecay, kFull>(param, chunk.grad + begin, from(chunk.moments[0], begin),
                                                from(chunk.moments[1], begin), from(chunk.moments[2], begin), moved, n,
                                                decision, rule, coefs);
    gather(moved, n, extras.moved_lanes);
    if (averages != nullptr) average_values(param, averages, n, extras.ema_weight);
    gather(param, n, extras.param_lanes);
  }
}

#define GRADOPS_UPDATE_TEMPLATE class Rule, int kVariant, WeightDecay kDecay, bool kFull
#define GRADOPS_UPDATE_BODY update_values<Rule, kVariant, kDecay, kFull>
GRADOPS_ISA_CLONES(UpdateValues, GRADOPS_UPDATE_BODY, GRADOPS_UPDATE_TEMPLATE, void,
                   (const ChunkValues& chunk, int64_t n, const StepDecision& decision, const RowRule& rule),
                   (chunk, n, decision, rule));

// Turns one property after the other into a template argument.
template <class Rule, int kVariant, bool... kProperties>
UpdateChunk compiled_for() {
  constexpr bool properties[] = {kProperties...};
  constexpr WeightDecay kDecay = properties[0] ? WeightDecay::kDecoupled : WeightDecay::kL2;
  return UpdateValues<Rule, kVariant, kDecay, properties[1]>::table[static_cast<int>(current_isa())];
}

template <class Rule, int kVariant, bool... kProperties, class... Properties>
UpdateChunk compiled_for(bool next, Properties... others) {
  return next ? compiled_for<Rule, kVariant, kProperties..., true>(others...)
              : compiled_for<Rule, kVariant, kProperties..., false>(others...);
}

template <UpdateRule Rule>
void update_chunk(const ChunkValues& chunk, int64_t n, const StepDecision& decision, const RowRule& rule) {
  // Both at once or neither, since each property doubles what is compiled.
  const bool full = rule.l1 != 0.0f || decision.clip_value != INFINITY;
  const UpdateChunk update = with_variant<Rule>(rule.variant, [&](auto variant) {
    return compiled_for<Rule, variant.value>(rule.decay_kind == WeightDecay::kDecoupled, full);
  });
  update(chunk, n, decision, rule);
}

}  // namespace gradops::cpu
