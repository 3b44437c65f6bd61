// How the kernels are launched on a device whose blocks may take so many bytes of shared memory. Prints one JSON
// object.
#include <cstdio>
#include <cstdlib>

#include "cuda/launch.h"

int main(int, char** argv) {
  using namespace gradops::cuda;
  const int slots = shared_slots(atol(argv[1]));
  printf("{\"threads\": %d, \"shared_slots\": %d, \"shared_bytes\": %ld, \"state_bytes\": %ld}\n", kThreads, slots,
         static_cast<long>(shared_bytes(slots)), static_cast<long>(kSharedStateBytes));
}
