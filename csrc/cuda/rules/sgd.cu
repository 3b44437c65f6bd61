#include "cuda/rule_kernels.cuh"
#include "math/rules/sgd.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::Sgd>();
