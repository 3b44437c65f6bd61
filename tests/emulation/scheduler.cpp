// Runs the CUDA threads of a launch, one at a time, in a seeded order.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime.h"

namespace emu {

Launch* launch_now = nullptr;
Thread* self = nullptr;
const Here* here = nullptr;

namespace {

constexpr unsigned kIdleRounds = 2000;  // of polls, all of which see what they saw before, until it is a deadlock

void end_thread(Thread& thread) {
  const Disregarded disregarded;
  Block& block = *thread.of;
  Launch& launch = *launch_now;
  if (block.waiting != 0) fault(thread.name() + " left while others of its block wait at " + name(block.barrier));
  if (launch.at_grid_barrier != 0) {
    fault(thread.name() + " left while others wait at the grid barrier at " + name(launch.grid_barrier));
  }
  check_warp_needs_not(thread);
  launch.progress++;
  launch.left++;
  block.left++;
  __tsan_release(&launch.end_token);
}

void thread_entry() {
  Fiber::entered();
  (*launch_now->kernel)();
  end_thread(*self);
  wait(State::kLeft, {});
  std::abort();
}

void start(Launch& launch, Block& block) {
  for (Thread& thread : block.threads) {
    thread.fiber = std::make_unique<Fiber>(thread_entry);
    launch.ready.push_back(&thread);
  }
}

void make_block(Launch& launch, unsigned index) {
  const dim3 grid = launch.shape.grid, shape = launch.shape.block;
  Block& block = launch.blocks[index];
  block.index = index;
  block.shared = std::make_unique<SharedMemory>(launch.shape.shared_bytes);
  block.threads.resize(launch.block_threads());
  for (unsigned rank = 0; rank < block.threads.size(); rank++) {
    Thread& thread = block.threads[rank];
    thread.thread = {rank % shape.x, rank / shape.x % shape.y, rank / (shape.x * shape.y)};
    thread.block = {index % grid.x, index / grid.x % grid.y, index / (grid.x * grid.y)};
    thread.block_dim = shape;
    thread.grid_dim = grid;
    thread.of = &block;
    thread.rank = rank;
    thread.id = index * block.threads.size() + rank;
  }
}

// The thread that runs next: the first without a seed, else one of those whose block ranks highest among a few.
Thread& choose(Launch& launch) {
  auto rank = [&](unsigned i) { return launch.rank[launch.ready[i]->of->index]; };
  unsigned best = launch.draw(launch.ready.size());
  for (unsigned i = 1; i < launch.choices; i++) {
    const unsigned other = launch.draw(launch.ready.size());
    if (rank(other) > rank(best)) best = other;
  }
  std::swap(launch.ready[0], launch.ready[best]);
  Thread& thread = *launch.ready.front();
  launch.ready.pop_front();
  return thread;
}

void run_one(Launch& launch, Thread& thread) {
  self = &thread;
  here = &thread;
  launch.report.switches++;
  launch.scheduler.switch_to(*thread.fiber);
  self = nullptr;
  here = nullptr;
}

void report_deadlock(Launch& launch) {
  std::map<std::string, unsigned> waiting;
  constexpr const char* kDoing[] = {"ready",
                                    "wait at the block barrier at ",
                                    "wait in the warp operation at ",
                                    "wait at the grid barrier at ",
                                    "poll at ",
                                    "left"};
  for (Block& block : launch.blocks) {
    for (Thread& thread : block.threads) {
      if (!thread.fiber || thread.state == State::kLeft) continue;
      waiting[kDoing[static_cast<int>(thread.state)] + name(thread.where)]++;
    }
  }
  std::string text = "deadlock:";
  for (const auto& [what, threads] : waiting) text += " " + std::to_string(threads) + " threads " + what + ";";
  fault(text + " " + std::to_string(launch.left) + " have left");
}

void draw_schedule(Launch& launch, uint64_t seed) {
  launch.seed = seed;
  launch.random.seed(seed);
  launch.rank.resize(launch.blocks.size());
  for (unsigned i = 0; i < launch.rank.size(); i++) launch.rank[i] = i;
  if (seed == 0) return;
  std::shuffle(launch.rank.begin(), launch.rank.end(), launch.random);
  launch.choices = launch.draw(2) ? 1 : 8;
  constexpr unsigned kPreempt[] = {0, 64, 4};
  launch.preempt = kPreempt[launch.draw(3)];
}

void run_all(Launch& launch) {
  const unsigned blocks = launch.grid_blocks();
  // ThreadSanitizer takes what starts a fiber to be ordered before all that the fiber does.
  const bool all_at_once = launch.shape.cooperative || kThreadSanitizer;
  const unsigned resident = all_at_once ? blocks : 1 + launch.draw(blocks);
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; i++) order[i] = i;
  if (launch.seed != 0) std::shuffle(order.begin(), order.end(), launch.random);
  unsigned started = 0, idle_rounds = 0, finished = 0;
  for (uint64_t progress = 0; finished < blocks && !launch.failed;) {
    while (started < blocks && started - finished < resident) start(launch, launch.blocks[order[started++]]);
    if (launch.ready.empty()) {
      idle_rounds = launch.progress == progress ? idle_rounds + 1 : 0;
      progress = launch.progress;
      if (launch.polling.empty() || idle_rounds > kIdleRounds) return report_deadlock(launch);
      for (Thread* thread : launch.polling) wake(*thread);
      launch.polling.clear();
    }
    Thread& thread = choose(launch);
    run_one(launch, thread);
    Block& block = *thread.of;
    if (block.left != launch.block_threads() || thread.state != State::kLeft) continue;
    finished++;
    if (!block.shared->gaps_intact()) fault("shared memory of " + thread.name() + " was written out of bounds");
    if (!kThreadSanitizer) {
      for (Thread& gone : block.threads) gone.fiber.reset();
    }
  }
}

// ThreadSanitizer complains of a fiber that ends while it is in the runtime.
void abandon_fibers(Launch& launch) {
  for (Block& block : launch.blocks) {
    for (Thread& thread : block.threads) thread.fiber.release();
  }
}

std::string impossible(const Shape& shape) {
  // 32,764 bytes of parameters since CUDA 12.1 on sm_70; 227 KB of shared memory on sm_90.
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  if (threads == 0 || threads > 1024) return "a block must have 1 to 1024 threads, not " + std::to_string(threads);
  if (blocks == 0) return "the grid has no block";
  if (shape.shared_bytes > 227 << 10) return std::to_string(shape.shared_bytes) + " bytes of shared memory";
  if (shape.parameter_bytes > 32764) return std::to_string(shape.parameter_bytes) + " bytes of parameters";
  // The most that gcc's ThreadSanitizer can tell apart.
  if (kThreadSanitizer && threads * blocks > 8000) return "more than 8000 threads under ThreadSanitizer";
  return "";
}

}  // namespace

std::string Thread::name() const { return "block " + std::to_string(of->index) + " thread " + std::to_string(rank); }

std::string name(const Where& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}

void fault(const std::string& text) {
  launch_now->report.faults.push_back(self ? text + " (" + self->name() + ")" : text);
  launch_now->failed = true;
  if (self != nullptr) self->fiber->leave_for(launch_now->scheduler);
}

void wait(State state, Where where) {
  Thread& thread = *self;
  thread.state = state;
  thread.where = where;
  if (state == State::kReady) launch_now->ready.push_back(&thread);
  if (state == State::kPolling) launch_now->polling.push_back(&thread);
  thread.fiber->switch_to(launch_now->scheduler);
}

void wake(Thread& thread) {
  thread.state = State::kReady;
  launch_now->ready.push_back(&thread);
}

void pause(Where where) {
  const Disregarded disregarded;
  // Mostly it comes back when nothing else can run, or a block that ranks high would starve those it waits for.
  const bool soon = launch_now->seed != 0 && launch_now->draw(4) == 0;
  wait(soon ? State::kReady : State::kPolling, where);
}

Report run(const Shape& shape, uint64_t seed, const std::function<void()>& kernel) {
  const Disregarded disregarded;
  Launch launch;
  const std::string reason = impossible(shape);
  if (!reason.empty()) {
    launch.report.faults.push_back("launch refused: " + reason);
    keep(launch.report);
    return launch.report;
  }
  launch_now = &launch;
  launch.shape = shape;
  launch.kernel = &kernel;
  launch.blocks.resize(launch.grid_blocks());
  for (unsigned i = 0; i < launch.blocks.size(); i++) make_block(launch, i);
  if (!kThreadSanitizer) launch.order = std::make_unique<Order>(launch.blocks.size(), launch.block_threads());
  draw_schedule(launch, seed);
  clear_traffic_and_races();
  run_all(launch);
  __tsan_acquire(&launch.end_token);
  if (kThreadSanitizer && launch.failed) abandon_fibers(launch);
  collect_traffic(launch.report);
  launch_now = nullptr;
  if (!trusts_addresses()) {
    keep(launch.report);
  } else if (!launch.report.ok()) {
    throw std::runtime_error("emulated kernel: " + launch.report.faults.front());
  }
  return launch.report;
}

}  // namespace emu
