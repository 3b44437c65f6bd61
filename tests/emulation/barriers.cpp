// Where the threads of a block, or of the grid, wait for each other.
#include "runtime.h"

namespace emu {

int block_barrier(Vote vote, int value, Where where) {
  const Disregarded disregarded;
  Launch& launch = *launch_now;
  Block& block = *self->of;
  launch.progress++;
  if (block.left != 0) fault("barrier at " + name(where) + " after threads of its block have left");
  if (block.waiting == 0) {
    block.barrier = where;
    block.votes = 0;
  } else if (name(block.barrier) != name(where)) {
    fault("divergent barrier: at " + name(where) + " while others wait at " + name(block.barrier));
  }
  block.votes += value != 0;
  void* token = &block.token[block.barriers % 2];
  __tsan_release(token);
  if (++block.waiting < block.threads.size()) {
    wait(State::kAtBlockBarrier, where);
  } else {
    const int all = block.threads.size();
    block.vote_result = vote == Vote::kCount ? block.votes : vote == Vote::kAnd ? block.votes == all : block.votes > 0;
    block.waiting = 0;
    block.barriers++;
    launch.report.barriers++;
    if (launch.order) launch.order->block_barrier(block.index);
    for (Thread& thread : block.threads) {
      if (&thread != self) wake(thread);
    }
    wait(State::kReady, where);
  }
  __tsan_acquire(token);
  return block.vote_result;
}

void grid_barrier(Where where) {
  const Disregarded disregarded;
  Launch& launch = *launch_now;
  launch.progress++;
  if (!launch.shape.cooperative) fault("grid barrier at " + name(where) + " in a launch that is not cooperative");
  if (launch.left != 0) fault("grid barrier at " + name(where) + " after threads of the grid have left");
  if (launch.at_grid_barrier == 0) launch.grid_barrier = where;
  void* token = &launch.token[launch.report.grid_barriers % 2];
  __tsan_release(token);
  if (++launch.at_grid_barrier < launch.block_threads() * launch.blocks.size()) {
    wait(State::kAtGridBarrier, where);
  } else {
    launch.at_grid_barrier = 0;
    launch.report.grid_barriers++;
    if (launch.order) launch.order->grid_barrier();
    for (Block& block : launch.blocks) {
      for (Thread& thread : block.threads) {
        if (&thread != self) wake(thread);
      }
    }
    wait(State::kReady, where);
  }
  __tsan_acquire(token);
}

}  // namespace emu
