// Every kernel, compiled for the CPU.
#include "cuda/activation_stats.cu"
#include "cuda/adam_step.cu"
#include "cuda/agc_step.cu"
#include "cuda/grad_stats.cu"
#include "cuda/one_pass_step.cu"
#include "cuda/two_launch_step.cu"
