// Which form a step is launched in: asked of the device once, then a matter of numbers.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/launch.cuh"

namespace gradops::cuda {

namespace {

// Kernel parameters beyond 4 KB need a driver of CUDA 12.1 as well as the toolkit.
constexpr int kLargeParamsDriver = 12010;

int attribute(cudaDeviceAttr what, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, what, device), "the device's limits cannot be read",
        "check that the GPU is visible to this process");
  return value;
}

}  // namespace

DeviceLimits device_limits(int device, const RuleKernels* kernels) {
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "the driver's version cannot be read", "check the NVIDIA driver");
  DeviceLimits limits;
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  limits.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  limits.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
  limits.large_params = driver >= kLargeParamsDriver && CUDART_VERSION >= kLargeParamsDriver;
  if (kernels != nullptr) limits.resident_blocks = kernels->make_one_pass_ready(limits.shared_bytes);
  return limits;
}

bool capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "whether a graph is captured is not known",
        "end the capture of the default stream first");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace gradops::cuda
