#include <algorithm>

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes)
#endif

namespace emu {
namespace {

constexpr size_t kStaticBytes = 48 << 10;  // CUDA's own limit
constexpr size_t kGapBytes = 128;          // also the alignment that dynamic shared memory has

unsigned char* align(unsigned char* p, size_t alignment) {
  return p + (alignment - reinterpret_cast<uintptr_t>(p) % alignment) % alignment;
}

}  // namespace

SharedMemory::SharedMemory(size_t dynamic_bytes)
    : bytes_(dynamic_bytes + kStaticBytes + 3 * kGapBytes, 0xff), free_(bytes_.data()) {
  ASAN_POISON_MEMORY_REGION(bytes_.data(), bytes_.size());
  dynamic_ = carve(dynamic_bytes, kGapBytes, nullptr);
}

SharedMemory::~SharedMemory() { ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size()); }

unsigned char* SharedMemory::carve(size_t bytes, size_t alignment, const void* site) {
  unsigned char* begin = align(free_ + kGapBytes, alignment);
  if (begin + bytes > bytes_.data() + bytes_.size()) fault("more than 48 KB of static shared memory");
  ASAN_UNPOISON_MEMORY_REGION(begin, bytes);
  spans_.push_back({begin, begin + bytes, site});
  free_ = begin + bytes;
  return begin;
}

void* SharedMemory::variable(const void* site, size_t bytes, size_t alignment) {
  for (const Span& span : spans_) {
    if (span.site == site) return span.begin;
  }
  return carve(bytes, alignment, site);
}

bool SharedMemory::holds(const void* address) const {
  const auto* p = static_cast<const unsigned char*>(address);
  return p >= bytes_.data() && p < bytes_.data() + bytes_.size();
}

bool SharedMemory::gaps_intact() const {
#if !defined(__SANITIZE_ADDRESS__)
  const unsigned char* gap = bytes_.data();
  auto untouched = [&](const unsigned char* end) {
    return std::all_of(gap, end, [](unsigned char byte) { return byte == 0xff; });
  };
  for (const Span& span : spans_) {
    if (!untouched(span.begin)) return false;
    gap = span.end;
  }
  return untouched(bytes_.data() + bytes_.size());
#else
  return true;
#endif
}

void* static_shared(const void* site, size_t bytes, size_t alignment) {
  const Disregarded disregarded;
  return self->of->shared->variable(site, bytes, alignment);
}

void* dynamic_shared() { return self->of->shared->dynamic(); }

}  // namespace emu
