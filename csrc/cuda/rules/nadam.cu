#include "cuda/rule_kernels.cuh"
#include "math/rules/nadam.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::NAdam>();
