// A guard against single spikes of the gradient norm: what is usual, what is a spike, and how the learning rate is cut
// and recovers. The meaning of each number is gradops/policies/spike_guard.py's.
#pragma once

#include "math/decide.h"

namespace gradops {

struct SpikeGuardPolicy {
  double ratio = INFINITY;
  double z_score = 0.0;
  bool skips = true;       // else a spike is clipped to the usual norm
  double lr_cut = 1.0;     // the learning rate's factor is multiplied by it at a spike
  double lr_growth = 1.0;  // and by this at every other step, up to 1
  double min_lr_factor = 0.0;
  int64_t history = 1;
  int64_t warmup_steps = 1;
};

struct SpikeGuardState {
  float lr_factor = 1.0f;   // for the next step
  float usual_norm = 0.0f;  // running median; 0 before the first norm
  float deviation = 0.0f;   // running mean of |norm - usual norm|, norms taken as no more than the limit
  int64_t norms_seen = 0;
};

GRADOPS_HD double spike_limit(const SpikeGuardState& state, const SpikeGuardPolicy& policy) {
  const double by_ratio = policy.ratio * state.usual_norm;
  const double by_deviation = state.usual_norm + policy.z_score * state.deviation;
  return by_ratio > by_deviation ? by_ratio : by_deviation;
}

// Makes the decision that of a guarded step if the norm is a spike; returns whether it is. A step that is skipped
// already is left alone.
GRADOPS_HD bool guard_step(StepDecision& decision, double grad_norm, const SpikeGuardState& state,
                           const SpikeGuardPolicy& policy) {
  if (decision.skip || state.norms_seen < policy.warmup_steps || !(grad_norm > spike_limit(state, policy)))
    return false;
  const float to_usual = static_cast<float>(state.usual_norm / grad_norm);
  decision.skip = policy.skips;
  decision.clip_coef = policy.skips ? 1.0f : to_usual < decision.clip_coef ? to_usual : decision.clip_coef;
  return true;
}

// The median moves by a fixed ratio toward each norm, however far off that is, so that one spike moves it no more than
// any other norm, and a level that stays is soon the usual one. Norms that no positive float32 holds leave it alone.
GRADOPS_HD SpikeGuardState next_guard_state(SpikeGuardState state, double grad_norm, bool guarded,
                                            const SpikeGuardPolicy& policy) {
  const double factor = state.lr_factor * (guarded ? policy.lr_cut : policy.lr_growth);
  const double floored = factor < policy.min_lr_factor ? policy.min_lr_factor : factor;
  state.lr_factor = static_cast<float>(floored < 1.0 ? floored : 1.0);
  const float norm = static_cast<float>(grad_norm);
  if (!(norm > 0.0f) || std::isinf(norm)) return state;
  if (state.norms_seen == 0) return {state.lr_factor, norm, 0.0f, 1};
  const int64_t seen = state.norms_seen + 1;
  const double rate = 1.0 / static_cast<double>(seen < policy.history ? seen : policy.history);
  const double limit = spike_limit(state, policy), usual = state.usual_norm;
  const double away = fabs((grad_norm < limit ? grad_norm : limit) - usual);
  state.deviation = static_cast<float>(state.deviation + (away - state.deviation) * rate);
  if (norm != state.usual_norm) {
    state.usual_norm = static_cast<float>(norm > state.usual_norm ? usual * (1.0 + rate) : usual / (1.0 + rate));
  }
  state.norms_seen = seen;
  return state;
}

}  // namespace gradops
