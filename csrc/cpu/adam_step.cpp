#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace gradops::cpu {
namespace {

template <WeightDecay kDecay, bool kAmsgrad, bool kL1, bool kMoved>
GRADOPS_HD void update_chunk(const AdamChunk& chunk, int64_t n, const StepDecision decision, const AdamRule rule) {
  float* __restrict param = chunk.param;
  float* __restrict exp_avg = chunk.exp_avg;
  float* __restrict exp_avg_sq = chunk.exp_avg_sq;
  float* __restrict max_exp_avg_sq = chunk.max_exp_avg_sq;
  float* __restrict moved = chunk.moved;
  const float* __restrict grad = chunk.grad;
  for (int64_t i = 0; i < n; ++i) {
    const float before = param[i];
    AdamElement element{before, exp_avg[i], exp_avg_sq[i], kAmsgrad ? max_exp_avg_sq[i] : 0.0f};
    element = adam_update<kDecay, kAmsgrad, kL1>(element, grad[i], decision, rule);
    param[i] = element.param;
    exp_avg[i] = element.exp_avg;
    exp_avg_sq[i] = element.exp_avg_sq;
    if constexpr (kAmsgrad) max_exp_avg_sq[i] = element.max_exp_avg_sq;
    if constexpr (kMoved) moved[i] = element.param - before;
  }
}

#define GRADOPS_ADAM_TEMPLATE WeightDecay kDecay, bool kAmsgrad, bool kL1, bool kMoved
#define GRADOPS_ADAM_BODY update_chunk<kDecay, kAmsgrad, kL1, kMoved>
GRADOPS_ISA_CLONES(UpdateChunk, GRADOPS_ADAM_BODY, GRADOPS_ADAM_TEMPLATE, void,
                   (const AdamChunk& chunk, int64_t n, const StepDecision& decision, const AdamRule& rule),
                   (chunk, n, decision, rule));

GRADOPS_HD void scale_values(float* __restrict values, int64_t n, const float coef) {
  for (int64_t i = 0; i < n; ++i) values[i] *= coef;
}

GRADOPS_HD void add_values(const float* __restrict kept, float* __restrict values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] += kept[i];
}

GRADOPS_HD void subtract_rounded(const float* __restrict values, float* __restrict rounded, int64_t n) {
  for (int64_t i = 0; i < n; ++i) rounded[i] = left_by_rounding(values[i], rounded[i]);
}

GRADOPS_HD void subtract_values(const float* __restrict after, float* __restrict before, int64_t n) {
  for (int64_t i = 0; i < n; ++i) before[i] = after[i] - before[i];
}

using UpdateFunction = void (*)(const AdamChunk&, int64_t, const StepDecision&, const AdamRule&);

template <bool kDecoupled, bool kAmsgrad, bool kL1, bool kMoved>
UpdateFunction compiled_for() {
  constexpr WeightDecay kDecay = kDecoupled ? WeightDecay::kDecoupled : WeightDecay::kL2;
  return UpdateChunk<kDecay, kAmsgrad, kL1, kMoved>::table[static_cast<int>(current_isa())];
}

// Turns one property after the other into a template argument.
template <bool... kKnown, class... Properties>
UpdateFunction compiled_for(bool next, Properties... others) {
  return next ? compiled_for<kKnown..., true>(others...) : compiled_for<kKnown..., false>(others...);
}

}  // namespace

void adam_step_chunk(const AdamChunk& chunk, int64_t n, const StepDecision& decision, const AdamRule& rule,
                     WeightDecay decay) {
  const UpdateFunction update = compiled_for(decay == WeightDecay::kDecoupled, chunk.max_exp_avg_sq != nullptr,
                                             rule.l1 != 0.0f, chunk.moved != nullptr);
  update(chunk, n, decision, rule);
}

void subtract_chunk(const float* after, float* before, int64_t n) { subtract_values(after, before, n); }

void add_chunk(const float* kept, float* values, int64_t n) { add_values(kept, values, n); }

void left_by_rounding_chunk(const float* values, float* rounded, int64_t n) { subtract_rounded(values, rounded, n); }

void scale_chunk(float* values, int64_t n, float coef) { scale_values(values, n, coef); }

}  // namespace gradops::cpu
