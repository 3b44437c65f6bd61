#include "cuda/rule_kernels.cuh"
#include "math/rules/adamax.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::Adamax>();
