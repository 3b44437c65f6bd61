// How many blocks of a kernel fit on a multiprocessor at once, computed without a device by the toolkit's own formulas.
//
// Usage: occupancy ARCH REGISTERS STATIC_SHARED THREADS DYNAMIC_SHARED. Prints one JSON object.
#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>

namespace {

constexpr size_t kKiB = 1024;

// Limits of an architecture, from the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
// Shared memory: what a multiprocessor has; a block gets 1 KiB less, which the driver reserves for itself.
struct Limits {
  int arch;
  int threads;
  size_t shared_kib;
};

constexpr Limits kLimits[] = {{80, 2048, 164},  {86, 1536, 100},  {89, 1536, 100}, {90, 2048, 228},
                              {100, 2048, 228}, {103, 2048, 228}, {120, 1536, 100}};

cudaOccDeviceProp device(const Limits& limits) {
  cudaOccDeviceProp device{};
  device.computeMajor = limits.arch / 10;
  device.computeMinor = limits.arch % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = limits.threads;
  device.regsPerBlock = 65536;
  device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 * kKiB;
  device.sharedMemPerMultiprocessor = limits.shared_kib * kKiB;
  device.numSms = 1;
  device.sharedMemPerBlockOptin = (limits.shared_kib - 1) * kKiB;
  device.reservedSharedMemPerBlock = kKiB;
  return device;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return fprintf(stderr, "usage: %s ARCH REGISTERS STATIC_SHARED THREADS DYNAMIC_SHARED\n", argv[0]), 2;
  for (const Limits& limits : kLimits) {
    if (limits.arch != atoi(argv[1])) continue;
    const cudaOccDeviceProp properties = device(limits);
    cudaOccFuncAttributes function{};
    function.maxThreadsPerBlock = 1024;
    function.numRegs = atoi(argv[2]);
    function.sharedSizeBytes = atol(argv[3]);
    function.partitionedGCConfig = PARTITIONED_GC_OFF;
    // A launch asks for more than 48 KiB with cudaFuncAttributeMaxDynamicSharedMemorySize; without this the answer
    // would be 0 blocks.
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = properties.sharedMemPerBlockOptin - function.sharedSizeBytes;
    function.numBlockBarriers = 1;
    const cudaOccDeviceState state{};
    cudaOccResult result{};
    const cudaOccError error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &properties, &function, &state, atoi(argv[4]), atol(argv[5]));
    if (error != CUDA_OCC_SUCCESS) return fprintf(stderr, "cuda_occupancy.h: error %d\n", error), 1;
    printf("{\"blocks\": %d, \"by_registers\": %d, \"by_shared\": %d, \"by_threads\": %d, \"shared_limit\": %zu}\n",
           result.activeBlocksPerMultiprocessor, result.blockLimitRegs, result.blockLimitSharedMem,
           result.blockLimitWarps, properties.sharedMemPerBlockOptin);
    return 0;
  }
  return fprintf(stderr, "no limits are known for sm_%s\n", argv[1]), 2;
}
