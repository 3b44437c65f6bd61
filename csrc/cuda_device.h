// What the host path asks of CUDA, kept apart so that the tests can answer in its place.
#pragma once

#include <c10/core/Device.h>

#include "cuda/launch.h"

namespace gradops {

cuda::Stream current_stream(c10::Device device);

// Whether the current stream is being captured into a graph.
bool capturing(c10::Device device);

}  // namespace gradops
