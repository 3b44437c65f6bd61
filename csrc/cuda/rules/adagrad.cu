#include "cuda/rule_kernels.cuh"
#include "math/rules/adagrad.h"

template const gradops::cuda::RuleKernels& gradops::cuda::kernels_of<gradops::Adagrad>();
