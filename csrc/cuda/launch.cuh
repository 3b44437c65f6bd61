// One launch, on the device or, in the tests, on its emulation.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/vec.cuh"
#ifdef GRADOPS_EMULATE
#include "emulator.h"
#endif

namespace gradops::cuda {

#ifdef GRADOPS_EMULATE

template <class Kernel, class... Args>
void launch(const char*, Kernel* kernel, int blocks, int64_t shared_bytes, bool cooperative, Stream,
            const Args&... args) {
  emu::launch(kernel, dim3(blocks), dim3(kThreads), shared_bytes, cooperative, emu::session_seed(), args...);
}

#else

inline void check(cudaError_t status, const std::string& what, const char* advice) {
  if (status == cudaSuccess) return;
  throw std::runtime_error("gradops: " + what + ": " + cudaGetErrorString(status) + "; " + advice);
}

template <class Kernel, class... Args>
void launch(const char* name, Kernel* kernel, int blocks, int64_t shared_bytes, bool cooperative, Stream stream,
            const Args&... args) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  void* params[] = {const_cast<void*>(static_cast<const void*>(&args))...};
  const cudaError_t status = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), params);
  check(status,
        std::string(name) + " could not be launched with " + std::to_string(blocks) + " blocks of " +
            std::to_string(kThreads) + " threads and " + std::to_string(shared_bytes) + " bytes of shared memory",
        "run with CUDA_LAUNCH_BLOCKING=1 to see whether an earlier kernel failed, and check that gradops was built for "
        "this GPU (TORCH_CUDA_ARCH_LIST)");
}

#endif

}  // namespace gradops::cuda
