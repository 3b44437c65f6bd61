// What the host allocates while it is kept account of is the GPU's memory, too: its tables and what kernels hand on.
// Each array is watched under its size, such as "672 bytes", and begins as what reads as NaN.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "emulator.h"

namespace {

std::mutex mutex;
bool keeps = false;
std::map<void*, size_t> arrays;

void watch(void* begin, size_t bytes) {
  emu::watch(std::to_string(bytes) + " bytes", begin, bytes, bytes % 4 == 0 ? 4 : 1, true);
}

void release(void* held) {
  auto* data = static_cast<at::DataPtr*>(held);
  {
    const std::lock_guard lock(mutex);
    arrays.erase(data->get());
    if (keeps) emu::unwatch(data->get());
  }
  delete data;
}

// Torch's own, whose arrays it notes.
class DeviceMemory : public c10::Allocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    at::DataPtr data = torchs_.allocate(bytes);
    const std::lock_guard lock(mutex);
    if (!keeps || bytes == 0) return data;
    void* begin = data.get();
    std::memset(begin, 0xff, bytes);
    arrays[begin] = bytes;
    watch(begin, bytes);
    return {begin, new at::DataPtr(std::move(data)), &release, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return torchs_.raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  c10::Allocator& torchs_ = *c10::GetCPUAllocator();
};

[[maybe_unused]] const bool kInstalled = (c10::SetCPUAllocator(new DeviceMemory, 1), true);

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void emulated_memory(int keep) {
  const std::lock_guard lock(mutex);
  keeps = keep != 0;
  for (const auto& [begin, bytes] : arrays) {
    if (keeps) watch(begin, bytes);
  }
}
}
#pragma GCC visibility pop
