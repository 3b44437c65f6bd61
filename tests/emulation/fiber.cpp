#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(EMU_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
}
#endif

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
// Saves what a callee must preserve; no system call, unlike swapcontext, which also saves the signal mask.
extern "C" void emu_switch_stack(void** save, void* load);
asm(R"(
.text
.globl emu_switch_stack
.hidden emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack, .-emu_switch_stack
)");
#else
#include <ucontext.h>
#define EMU_UCONTEXT 1
#endif

#if defined(__SANITIZE_ADDRESS__)
// A fault leaves its fibers for good, and with them what their stacks own.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

namespace emu {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(EMU_TSAN)
constexpr size_t kStackBytes = 128 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kGuardBytes = 4096;

// Stacks are used again: mapping 4096 of them and touching their first pages takes longer than most launches.
std::vector<char*> free_stacks;
Fiber* left = nullptr;
Fiber* running = nullptr;

char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED || mprotect(stack, kGuardBytes, PROT_NONE) != 0) {
    std::perror("emulator: stack of a CUDA thread");
    std::abort();
  }
  return static_cast<char*>(stack);
}

}  // namespace

Fiber::Fiber() {
#if defined(EMU_UCONTEXT)
  context_ = new ucontext_t;
#endif
#if defined(EMU_TSAN)
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)()) : stack_(take_stack()), stack_bottom_(stack_), stack_bytes_(kStackBytes) {
#if defined(EMU_UCONTEXT)
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = kStackBytes;
  makecontext(context, entry, 0);
  context_ = context;
#else
  // Tops are spread over 16 cache lines; all at one offset would share few cache sets.
  static unsigned color = 0;
  auto* top = reinterpret_cast<uint64_t*>(stack_ + kStackBytes - 64 * (1 + color++ % 16));
  // From the top: the alignment that a call leaves, the return address, six registers.
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; i++) *--top = 0;
  context_ = top;
#endif
#if defined(EMU_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(EMU_UCONTEXT)
  delete static_cast<ucontext_t*>(context_);
#endif
  if (stack_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_ + kGuardBytes, kStackBytes - kGuardBytes);
#endif
#if defined(EMU_TSAN)
  __tsan_destroy_fiber(tsan_);
#endif
  free_stacks.push_back(stack_);
}

void Fiber::switch_to(Fiber& next) {
  left = this;
  running = &next;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&asan_, next.stack_bottom_, next.stack_bytes_);
#endif
#if defined(EMU_TSAN)
  // 1: the switch orders nothing, since what runs one after the other here runs at once on a GPU.
  __tsan_switch_to_fiber(next.tsan_, 1);
#endif
#if defined(EMU_UCONTEXT)
  swapcontext(static_cast<ucontext_t*>(context_), static_cast<ucontext_t*>(next.context_));
#else
  emu_switch_stack(&context_, next.context_);
#endif
  entered();
}

void Fiber::leave_for(Fiber& next) {
  switch_to(next);
  std::abort();
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(running->asan_, &bottom, &bytes);
  if (left->stack_ == nullptr) {
    left->stack_bottom_ = bottom;
    left->stack_bytes_ = bytes;
  }
#endif
}

}  // namespace emu
