// Global memory: bounds, alignment, races and exact traffic of every access.
#include <algorithm>
#include <cstring>
#include <set>

#include "runtime.h"

namespace emu {
namespace {

// The last accesses to one element. Two readers are remembered, by the parity of their block: enough to see that a
// store is not ordered after a load of another block, which is what a missing barrier looks like.
struct Cell {
  Stamp store;
  Stamp loads[2];
  bool store_is_atomic = false;
};

struct Range {
  std::string name;
  const char* begin;
  size_t bytes, element_bytes;
  bool writable;
  Traffic traffic;
  std::vector<Cell> cells;                    // of writable ranges, since nothing can race otherwise
  std::vector<unsigned char> loaded, stored;  // whether each element was

  bool holds(const char* p) const { return p >= begin && p < begin + bytes; }
  std::string element(const char* p) const { return name + "[" + std::to_string((p - begin) / element_bytes) + "]"; }
};

std::vector<Range> ranges;  // sorted by address
Range* last_found = nullptr;
bool trusted = false;
std::set<std::string> races_noted;

Range* find(const char* p) {
  if (last_found != nullptr && last_found->holds(p)) return last_found;
  auto after = std::upper_bound(ranges.begin(), ranges.end(), p, [](auto* p, const Range& r) { return p < r.begin; });
  if (after == ranges.begin() || !(after - 1)->holds(p)) return nullptr;
  return last_found = &*(after - 1);
}

const char* verb(Access access) {
  constexpr const char* kVerbs[] = {"load", "store", "poll", "publishing store", "atomic"};
  return kVerbs[static_cast<int>(access)];
}

std::string where_in_grid(uint32_t thread) {
  return launch_now->blocks[thread / launch_now->block_threads()].threads[thread % launch_now->block_threads()].name();
}

void note_race(const Range& range, const char* p, Access access, const char* earlier, uint32_t by, Where where) {
  const std::string kind = std::string("race: ") + verb(access) + " of " + range.name;
  // One of a kind is enough, and a race tends to come in thousands.
  if (!races_noted.insert(kind + earlier).second) return;
  launch_now->report.faults.push_back(std::string("race: ") + verb(access) + " of " + range.element(p) + " by " +
                                      self->name() + " at " + name(where) + " is not ordered after the " + earlier +
                                      " by " + where_in_grid(by));
}

void check_order(Range& range, const char* p, size_t bytes, Access access, Where where) {
  const Order& order = *launch_now->order;
  const bool stores = access == Access::kStore || access == Access::kPublish || access == Access::kAtomic;
  const bool atomic = access != Access::kLoad && access != Access::kStore;
  const Stamp now = order.now(self->id);
  const size_t first = (p - range.begin) / range.element_bytes;
  const size_t last = (p + bytes - 1 - range.begin) / range.element_bytes;
  for (size_t i = first; i <= last; i++) {
    Cell& cell = range.cells[i];
    const char* element = range.begin + i * range.element_bytes;
    if (!(atomic && cell.store_is_atomic) && !order.before(cell.store, self->id)) {
      note_race(range, element, access, "store", cell.store.thread, where);
    }
    if (!stores) {
      // An atomic load races with no atomic store, and plain stores are seen to above, from the other side.
      if (!atomic) cell.loads[self->of->index % 2] = now;
      continue;
    }
    for (Stamp& load : cell.loads) {
      if (!order.before(load, self->id)) note_race(range, element, access, "load", load.thread, where);
      load = {};
    }
    cell.store = now;
    cell.store_is_atomic = atomic;
  }
}

void count(Range& range, const char* p, size_t bytes, Access access) {
  Traffic& traffic = range.traffic;
  const size_t first = (p - range.begin) / range.element_bytes;
  const size_t count = (p + bytes - 1 - range.begin) / range.element_bytes - first + 1;
  switch (access) {
    case Access::kLoad:
      traffic.loads++;
      traffic.load_bytes += bytes;
      std::fill_n(range.loaded.begin() + first, count, 1);
      break;
    case Access::kStore:
      traffic.stores++;
      traffic.store_bytes += bytes;
      std::fill_n(range.stored.begin() + first, count, 1);
      break;
    case Access::kAtomic:
      traffic.atomics++;
      break;
    default:
      traffic.polls++;
  }
}

// The range that holds all of the access, which must be allowed there.
Range& checked(const char* p, size_t bytes, Access access, Where where) {
  const std::string what = std::to_string(bytes) + "-byte " + verb(access);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    Range* range = find(p);
    fault("misaligned " + what + (range ? " of " + range->element(p) : "") + " at " + name(where));
  }
  Range* range = find(p);
  if (range == nullptr || !range->holds(p + bytes - 1)) {
    auto near = std::find_if(ranges.begin(), ranges.end(),
                             [&](const Range& r) { return p + 256 >= r.begin && p < r.begin + r.bytes + 256; });
    const std::string by = near == ranges.end() ? "" : ", near " + near->element(p);
    fault("out of bounds: " + what + " at " + name(where) + by);
  }
  if (!range->writable && access != Access::kLoad && access != Access::kPoll) {
    fault("read-only: " + what + " of " + range->element(p) + " at " + name(where));
  }
  return *range;
}

}  // namespace

void watch(const std::string& name, const void* begin, size_t bytes, size_t element_bytes, bool writable) {
  if (bytes == 0) return;
  Range range{name, static_cast<const char*>(begin), bytes, element_bytes, writable, {}, {}, {}, {}};
  const size_t elements = (bytes + element_bytes - 1) / element_bytes;
  if (writable) range.cells.resize(elements);
  range.loaded.resize(elements);
  range.stored.resize(elements);
  auto after = std::upper_bound(ranges.begin(), ranges.end(), range.begin,
                                [](const char* p, const Range& r) { return p < r.begin; });
  ranges.insert(after, std::move(range));
  last_found = nullptr;
}

void trust_addresses() { trusted = true; }

bool trusts_addresses() { return trusted && ranges.empty(); }

void unwatch(const void* begin) {
  std::erase_if(ranges, [&](const Range& range) { return range.begin == begin; });
  last_found = nullptr;
}

void unwatch_all() {
  ranges.clear();
  last_found = nullptr;
}

void clear_traffic_and_races() {
  races_noted.clear();
  for (Range& range : ranges) {
    range.traffic = {};
    std::fill(range.cells.begin(), range.cells.end(), Cell{});
    std::fill(range.loaded.begin(), range.loaded.end(), 0);
    std::fill(range.stored.begin(), range.stored.end(), 0);
  }
}

void collect_traffic(Report& report) {
  for (const Range& range : ranges) {
    Traffic& sum = report.traffic[range.name];
    sum.loads += range.traffic.loads;
    sum.stores += range.traffic.stores;
    sum.load_bytes += range.traffic.load_bytes;
    sum.store_bytes += range.traffic.store_bytes;
    sum.distinct_load_bytes += range.element_bytes * std::count(range.loaded.begin(), range.loaded.end(), 1);
    sum.distinct_store_bytes += range.element_bytes * std::count(range.stored.begin(), range.stored.end(), 1);
    sum.atomics += range.traffic.atomics;
    sum.polls += range.traffic.polls;
  }
}

void touch(const void* address, size_t bytes, Access access, Where where) {
  const Disregarded disregarded;
  Launch& launch = *launch_now;
  const bool spins = access == Access::kPoll || access == Access::kAtomic;
  if (spins) {
    pause(where);
  } else {
    launch.progress++;
    if (launch.preempt != 0 && launch.draw(launch.preempt) == 0) wait(State::kReady, where);
  }
  // Shared memory is watched by the sanitizers.
  if (trusts_addresses() || self->of->shared->holds(address)) return;
  const char* p = static_cast<const char*>(address);
  Range& range = checked(p, bytes, access, where);
  count(range, p, bytes, access);
  if (launch.order) {
    if (range.writable) check_order(range, p, bytes, access, where);
    if (access == Access::kPoll || access == Access::kAtomic) launch.order->observe(self->id, address);
    if (access == Access::kPublish || access == Access::kAtomic) {
      launch.order->publish(self->id, address, access == Access::kAtomic);
    }
  }
  tsan_atomic(address, access);
}

}  // namespace emu
