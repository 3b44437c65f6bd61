#include "cuda/rule_kernels.cuh"
#include "math/rules/radam.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::RAdam>();
