// All kernels of one update rule. Each rule compiles them in a file of its own, cuda/rules.
#pragma once

#include "cuda/agc_step.cuh"
#include "cuda/one_pass_step.cuh"
#include "cuda/sharded_step.cuh"
#include "cuda/update_step.cuh"

namespace gradops::cuda {

template <UpdateRule Rule>
const RuleKernels& kernels_of() {
  static const RuleKernels kernels = {
      &one_pass_step<Rule>,       &agc_step<Rule>,    &update_alone<Rule>,
      &measure_shards<Rule>,      &plan_shards<Rule>, &update_shards<Rule>,
#ifndef GRADOPS_EMULATE
      &make_one_pass_ready<Rule>,
#endif
  };
  return kernels;
}

}  // namespace gradops::cuda
