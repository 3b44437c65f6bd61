// What kernel code calls in the emulator's runtime. The runtime is compiled apart and without ThreadSanitizer, which
// then sees the kernel and nothing of the machinery.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace emu {

using Where = std::source_location;

// Of the CUDA thread that is running.
struct Here {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern const Here* here;

enum class Access {
  kLoad,
  kStore,
  kPoll,     // a relaxed load at GPU scope, as of a flag
  kPublish,  // a relaxed store at GPU scope
  kAtomic,   // a relaxed read-modify-write
};

// To be called before each access to global memory: counts and checks it, and may let other threads run first.
void touch(const void* address, size_t bytes, Access access, Where where);

// A fence at GPU scope.
void fence();

// Lets others run, as a thread does that spins.
void pause(Where where);

enum class Vote { kCount, kAnd, kOr };
// __syncthreads and its voting forms; a thread's share in the vote is whether `value` is not 0.
int block_barrier(Vote vote, int value, Where where);
void grid_barrier(Where where);

enum class WarpOp { kSync, kShuffle, kBallot, kAdd, kMin, kMax, kAnd, kOr, kXor };
// `value` is this lane's; `source` the lane that a shuffle reads.
uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, unsigned source, Where where);
unsigned lane();

// The block's own copy of the static shared variable that is declared at `site`.
void* static_shared(const void* site, size_t bytes, size_t alignment);
void* dynamic_shared();

}  // namespace emu
