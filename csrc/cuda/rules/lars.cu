#include "cuda/rule_kernels.cuh"
#include "math/rules/lars.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::Lars>();
