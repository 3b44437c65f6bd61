// Operations of the lanes of a warp, and fences.
#include "runtime.h"

namespace emu {
namespace {

constexpr const char* kNames[] = {"__syncwarp", "shuffle",   "vote",      "reduction", "reduction",
                                  "reduction",  "reduction", "reduction", "reduction"};

Thread* first_lane(Thread& thread) { return &thread - thread.lane(); }

template <class Use>
void for_lanes(unsigned mask, Use use) {
  for (; mask != 0; mask &= mask - 1) use(static_cast<unsigned>(__builtin_ctz(mask)));
}

uint64_t reduce(WarpOp op, uint64_t a, uint64_t b) {
  switch (op) {
    case WarpOp::kAdd:
      return static_cast<uint32_t>(a + b);
    case WarpOp::kMin:
      return a < b ? a : b;
    case WarpOp::kMax:
      return a > b ? a : b;
    case WarpOp::kAnd:
      return a & b;
    case WarpOp::kOr:
      return a | b;
    default:
      return a ^ b;
  }
}

// Each lane's result, once the last one has come.
void complete(Thread* lanes, WarpOp op, unsigned mask) {
  if (op == WarpOp::kShuffle) {
    return for_lanes(mask, [&](unsigned lane) { lanes[lane].warp.result = lanes[lanes[lane].warp.source].warp.value; });
  }
  uint64_t result = 0;
  bool first = true;
  for_lanes(mask, [&](unsigned lane) {
    const uint64_t value = op == WarpOp::kBallot ? lanes[lane].warp.value << lane : lanes[lane].warp.value;
    result = first ? value : reduce(op == WarpOp::kBallot ? WarpOp::kOr : op, result, value);
    first = false;
  });
  for_lanes(mask, [&](unsigned lane) { lanes[lane].warp.result = result; });
}

// Whether all lanes but this one wait in the same operation already.
bool is_last(Thread& thread, WarpOp op, unsigned mask, Where where) {
  Thread* lanes = first_lane(thread);
  const unsigned existing = thread.of->threads.size() - (thread.rank - thread.lane());
  const std::string what = std::string(kNames[static_cast<int>(op)]) + " at " + name(where);
  bool last = true;
  for_lanes(mask, [&](unsigned lane) {
    if (lane >= existing) fault(what + " names lane " + std::to_string(lane) + ", which does not exist");
    const Thread& other = lanes[lane];
    if (&other == &thread) return;
    if (other.state == State::kLeft) fault(what + " names lane " + std::to_string(lane) + ", which has left");
    const bool waits = other.state == State::kInWarpOperation;
    if (waits && (other.warp.op != op || other.warp.mask != mask)) {
      fault("divergent " + what + " while lane " + std::to_string(lane) + " is in another operation at " +
            name(other.where));
    }
    last &= waits;
  });
  return last;
}

}  // namespace

unsigned lane() { return self->lane(); }

uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, unsigned source, Where where) {
  const Disregarded disregarded;
  Thread& thread = *self;
  Thread* lanes = first_lane(thread);
  Launch& launch = *launch_now;
  launch.progress++;
  if (!(mask >> thread.lane() & 1)) fault(name(where) + ": a lane is not in its own mask");
  if (op == WarpOp::kShuffle && !(mask >> source & 1)) {
    fault("shuffle at " + name(where) + " reads lane " + std::to_string(source) + ", which is not in the mask");
  }
  thread.warp.op = op;
  thread.warp.mask = mask;
  thread.warp.value = value;
  thread.warp.source = source;
  void* token = &lanes->token[thread.warp.syncs % 2];
  if (op == WarpOp::kSync) {
    thread.warp.syncs++;
    __tsan_release(token);
  }
  if (is_last(thread, op, mask, where)) {
    complete(lanes, op, mask);
    launch.report.warp_operations++;
    if (op == WarpOp::kSync && launch.order) launch.order->warp_barrier(lanes->id, mask);
    for_lanes(mask, [&](unsigned lane) {
      if (&lanes[lane] != &thread) wake(lanes[lane]);
    });
    wait(State::kReady, where);
  } else {
    wait(State::kInWarpOperation, where);
  }
  if (op == WarpOp::kSync) __tsan_acquire(token);
  return thread.warp.result;
}

void check_warp_needs_not(const Thread& thread) {
  const Thread* lanes = &thread - thread.lane();
  const unsigned existing = thread.of->threads.size() - (thread.rank - thread.lane());
  for (unsigned lane = 0; lane < 32 && lane < existing; lane++) {
    const Thread& other = lanes[lane];
    if (other.state == State::kInWarpOperation && (other.warp.mask >> thread.lane() & 1)) {
      fault("lane " + std::to_string(thread.lane()) + " left while " + kNames[static_cast<int>(other.warp.op)] +
            " at " + name(other.where) + " names it");
    }
  }
}

void fence() {
  const Disregarded disregarded;
  Thread& thread = *self;
  launch_now->report.fences++;
  if (launch_now->order) launch_now->order->fence(thread.id);
  if (!kThreadSanitizer) return;
  for (const void* address : thread.observed) __tsan_acquire(const_cast<void*>(address));
  thread.observed.clear();
  thread.fenced = true;
}

// As `Order` does it, as far as ThreadSanitizer's interface allows: it lets a fence cover what is stored after it, too.
void tsan_atomic(const void* address, Access access) {
  if (!kThreadSanitizer || access == Access::kLoad || access == Access::kStore) return;
  if (access != Access::kPublish) self->observed.push_back(address);
  if (access != Access::kPoll && self->fenced) __tsan_release(const_cast<void*>(address));
}

}  // namespace emu
