#include "cuda/rule_kernels.cuh"
#include "math/rules/lion.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::Lion>();
