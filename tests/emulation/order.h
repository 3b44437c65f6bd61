// Which accesses are ordered before which, after the PTX memory model as far as kernels here use it: barriers, fences
// at GPU scope, and relaxed atomics between two fences. Two accesses that are not ordered are a race, even if this
// schedule happened to run them in the order that was meant.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

namespace emu {

constexpr uint32_t kNobody = ~0u;

// Who made an access, and when by its own count of barriers and of fences.
struct Stamp {
  uint32_t thread = kNobody, epoch = 0, time = 0;
};

// What is known to have happened: of each block all that came before its so-manieth barrier, and of single threads
// what came before their so-manieth fence.
struct Clock {
  std::vector<uint32_t> epochs;
  std::map<uint32_t, uint32_t> times;

  void join(const Clock& other);
};

class Order {
 public:
  Order(unsigned blocks, unsigned block_threads);

  void block_barrier(unsigned block);
  void grid_barrier();
  // Orders the lanes of `mask` in the warp that begins with `thread`.
  void warp_barrier(uint32_t thread, unsigned mask);
  void fence(uint32_t thread);
  // An atomic access to `address`; a read-modify-write lets what was published there before it stand.
  void observe(uint32_t thread, const void* address);
  void publish(uint32_t thread, const void* address, bool read_modify_write);

  Stamp now(uint32_t thread) const;
  bool before(const Stamp& access, uint32_t thread) const;

 private:
  struct View {
    uint32_t time = 1;
    std::shared_ptr<Clock> known;                // none: what its block knows
    std::unique_ptr<Clock> observed, published;  // of atomics since the last fence; as of the last fence
  };
  unsigned block_of(uint32_t thread) const { return thread / block_threads_; }
  const Clock& known(uint32_t thread) const;

  unsigned block_threads_;
  std::vector<Clock> blocks_;
  std::vector<View> threads_;
  std::unordered_map<const void*, Clock> published_;
};

}  // namespace emu
