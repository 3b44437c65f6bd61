#include "cuda/rule_kernels.cuh"
#include "math/rules/rmsprop.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::Rmsprop>();
