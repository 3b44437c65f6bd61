// The emulator's own state: one launch at a time, on one OS thread.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "emulator.h"
#include "fiber.h"
#include "order.h"

namespace emu {

enum class State { kReady, kAtBlockBarrier, kInWarpOperation, kAtGridBarrier, kPolling, kLeft };

struct Block;

struct Thread : Here {
  Block* of = nullptr;
  unsigned rank = 0;  // in the block
  unsigned id = 0;    // in the grid
  std::unique_ptr<Fiber> fiber;
  State state = State::kReady;
  Where where;  // of what it waits for
  struct {
    WarpOp op;
    unsigned mask, source;
    uint64_t value, result;
    unsigned syncs;
  } warp = {};
  // For ThreadSanitizer: flags read since the last fence, whether there was one, and tokens used in turn.
  std::vector<const void*> observed;
  bool fenced = false;
  char token[2];

  unsigned lane() const { return rank % 32; }
  std::string name() const;
};

// Shared memory of a block: variables apart from each other, filled with 0xff, which reads as NaN.
class SharedMemory {
 public:
  explicit SharedMemory(size_t dynamic_bytes);
  ~SharedMemory();
  void* dynamic() const { return dynamic_; }
  void* variable(const void* site, size_t bytes, size_t alignment);
  bool holds(const void* address) const;
  // Whether nothing was written between the variables; an AddressSanitizer build stops at the access itself.
  bool gaps_intact() const;

 private:
  struct Span {
    unsigned char *begin, *end;
    const void* site;
  };
  unsigned char* carve(size_t bytes, size_t alignment, const void* site);

  std::vector<unsigned char> bytes_;
  unsigned char* free_;
  std::vector<Span> spans_;
  unsigned char* dynamic_;
};

struct Block {
  unsigned index = 0;
  std::vector<Thread> threads;
  std::unique_ptr<SharedMemory> shared;
  unsigned waiting = 0, left = 0;
  Where barrier;  // where the first one waits
  int votes = 0, vote_result = 0;
  char token[2];  // for ThreadSanitizer, used in turn
  unsigned barriers = 0;
};

struct Launch {
  Shape shape;
  const std::function<void()>* kernel = nullptr;
  Report report;
  bool failed = false;
  std::mt19937_64 random;
  uint64_t seed = 0;
  unsigned choices = 1;  // candidates among which the block of the highest rank runs next; 1: any thread
  unsigned preempt = 0;  // a thread is preempted at one of so many global accesses; 0: never
  Fiber scheduler;
  std::vector<Block> blocks;
  std::vector<unsigned> rank;  // of each block, in the eyes of the scheduler
  std::deque<Thread*> ready;
  std::vector<Thread*> polling;
  uint64_t progress = 0;  // whatever is no poll
  unsigned at_grid_barrier = 0, left = 0;
  Where grid_barrier;
  char token[2], end_token;
  std::unique_ptr<Order> order;

  unsigned block_threads() const { return shape.block.x * shape.block.y * shape.block.z; }
  unsigned grid_blocks() const { return shape.grid.x * shape.grid.y * shape.grid.z; }
  // One of `n`, 0 without a seed.
  unsigned draw(unsigned n) { return seed == 0 ? 0 : static_cast<unsigned>(random() % n); }
};

extern Launch* launch_now;
extern Thread* self;

// Notes a fault and ends the launch. Called by a CUDA thread, it does not return.
void fault(const std::string& text);
std::string name(const Where& where);

// Gives the processor away; returns when the thread is `kReady` and its turn has come.
void wait(State state, Where where);
void wake(Thread& thread);

void clear_traffic_and_races();
void collect_traffic(Report& report);
void keep(const Report& report);
bool trusts_addresses();
// At the end of a thread: no lane may still count on it.
void check_warp_needs_not(const Thread& thread);
void tsan_atomic(const void* address, Access access);

// What ThreadSanitizer is told of the order of things; without it, nothing.
#if defined(EMU_TSAN)
extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
constexpr bool kThreadSanitizer = true;
#else
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
inline void AnnotateIgnoreReadsBegin(const char*, int) {}
inline void AnnotateIgnoreReadsEnd(const char*, int) {}
inline void AnnotateIgnoreWritesBegin(const char*, int) {}
inline void AnnotateIgnoreWritesEnd(const char*, int) {}
constexpr bool kThreadSanitizer = false;
#endif

// While it lives, ThreadSanitizer disregards what allocation and copying do: whatever enters the runtime has one.
class Disregarded {
 public:
  Disregarded() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Disregarded() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

}  // namespace emu
