#include "math/rules/adam.h"

#include "cuda/rule_kernels.cuh"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::Adam>();
