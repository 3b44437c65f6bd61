#include "cuda_device.h"

#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

namespace gradops {

cuda::Stream current_stream(c10::Device device) { return c10::cuda::getCurrentCUDAStream(device.index()).stream(); }

bool capturing(c10::Device) {
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

}  // namespace gradops
