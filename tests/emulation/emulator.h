// Launches a CUDA kernel on the CPU and reports what it did: host side. README.md says how it is used.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace emu {

// What a launch did to the arrays of one name.
struct Traffic {
  uint64_t loads = 0, stores = 0;                              // accesses, of whatever width
  uint64_t load_bytes = 0, store_bytes = 0;                    // without atomics and polls
  uint64_t distinct_load_bytes = 0, distinct_store_bytes = 0;  // of elements, however often they were accessed
  uint64_t atomics = 0, polls = 0;                             // polls depend on the schedule, all else does not
};

struct Report {
  std::map<std::string, Traffic> traffic;
  uint64_t barriers = 0;       // __syncthreads passed, over all blocks
  uint64_t grid_barriers = 0;  // grid.sync() passed
  uint64_t warp_operations = 0;
  uint64_t fences = 0;
  uint64_t switches = 0;  // of fibers
  std::vector<std::string> faults;

  bool ok() const { return faults.empty(); }
  std::string json() const;
};

struct Shape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  size_t parameter_bytes = 0;
};

// Names an array that kernels may touch. `element_bytes` is how much of it one thread may write beside another without
// a race. Several arrays may have one name; their traffic is added up. Everything that is not watched is out of bounds.
void watch(const std::string& name, const void* begin, size_t bytes, size_t element_bytes, bool writable);
void unwatch(const void* begin);
void unwatch_all();

// From now on, while nothing is watched, every address is allowed and nothing is counted, and a launch that ends with a
// fault throws: for hosts that hand over arrays by the thousand.
void trust_addresses();

// What Python set; 0 otherwise.
uint64_t session_seed();

// Runs `kernel` once for each CUDA thread of `shape`.
Report run(const Shape& shape, uint64_t seed, const std::function<void()>& kernel);

template <class... Params, class... Args>
Report launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, uint64_t seed,
              Args&&... args) {
  // Copied at the launch, as CUDA does.
  std::tuple<std::decay_t<Params>...> params(std::forward<Args>(args)...);
  const size_t bytes = (size_t{0} + ... + sizeof(std::decay_t<Params>));
  return run({grid, block, shared_bytes, cooperative, bytes}, seed, [&] { std::apply(kernel, params); });
}

}  // namespace emu
