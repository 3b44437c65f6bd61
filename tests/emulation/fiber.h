// A stack of its own for each CUDA thread, and the switch between two stacks, which the sanitizers are told of.
#pragma once

#include <cstddef>

namespace emu {

class Fiber {
 public:
  // The fiber that is running: the scheduler's.
  Fiber();
  // A fiber that will call `entry`, which must never return.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves `this`, which must be running, for `next`; returns when something switches back.
  void switch_to(Fiber& next);
  // As switch_to, by a fiber that will not run again.
  [[noreturn]] void leave_for(Fiber& next);
  // First thing that `entry` does.
  static void entered();

 private:
  void* context_ = nullptr;
  char* stack_ = nullptr;
  const void* stack_bottom_ = nullptr;
  size_t stack_bytes_ = 0;
  void* tsan_ = nullptr;
  void* asan_ = nullptr;
};

}  // namespace emu
