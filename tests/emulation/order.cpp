#include "order.h"

#include <algorithm>

namespace emu {

void Clock::join(const Clock& other) {
  for (size_t i = 0; i < epochs.size(); i++) epochs[i] = std::max(epochs[i], other.epochs[i]);
  for (const auto& [thread, time] : other.times) {
    uint32_t& known = times[thread];
    known = std::max(known, time);
  }
}

Order::Order(unsigned blocks, unsigned block_threads)
    : block_threads_(block_threads),
      blocks_(blocks, Clock{std::vector<uint32_t>(blocks), {}}),
      threads_(size_t{blocks} * block_threads) {}

const Clock& Order::known(uint32_t thread) const {
  const View& view = threads_[thread];
  return view.known ? *view.known : blocks_[block_of(thread)];
}

void Order::block_barrier(unsigned block) {
  Clock& clock = blocks_[block];
  for (uint32_t thread = block * block_threads_; thread < (block + 1) * block_threads_; thread++) {
    View& view = threads_[thread];
    if (view.known) clock.join(*view.known);
    view.known.reset();
  }
  // Its own epoch is one more than what a block knows of itself.
  clock.epochs[block]++;
  std::erase_if(clock.times, [&](const auto& entry) { return block_of(entry.first) == block; });
}

void Order::grid_barrier() {
  Clock all{std::vector<uint32_t>(blocks_.size()), {}};
  for (unsigned block = 0; block < blocks_.size(); block++) {
    block_barrier(block);
    all.epochs[block] = blocks_[block].epochs[block];
  }
  for (Clock& clock : blocks_) clock = all;
}

void Order::warp_barrier(uint32_t thread, unsigned mask) {
  auto together = std::make_shared<Clock>(known(thread + __builtin_ctz(mask)));
  for (unsigned lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    together->join(known(thread + lane));
    together->times[thread + lane] = threads_[thread + lane].time++;
  }
  for (unsigned lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) threads_[thread + lane].known = std::make_shared<Clock>(*together);
  }
}

void Order::fence(uint32_t thread) {
  View& view = threads_[thread];
  if (view.observed) {
    auto joined = std::make_shared<Clock>(known(thread));
    joined->join(*view.observed);
    view.known = std::move(joined);
    view.observed.reset();
  }
  view.published = std::make_unique<Clock>(known(thread));
  view.published->times[thread] = view.time++;
}

void Order::observe(uint32_t thread, const void* address) {
  const auto found = published_.find(address);
  if (found == published_.end()) return;
  auto& observed = threads_[thread].observed;
  if (observed) {
    observed->join(found->second);
  } else {
    observed = std::make_unique<Clock>(found->second);
  }
}

void Order::publish(uint32_t thread, const void* address, bool read_modify_write) {
  if (!read_modify_write) published_.erase(address);
  const auto& published = threads_[thread].published;
  if (!published) return;
  const auto [entry, is_new] = published_.try_emplace(address, *published);
  if (!is_new) entry->second.join(*published);
}

Stamp Order::now(uint32_t thread) const {
  const unsigned block = block_of(thread);
  return {thread, blocks_[block].epochs[block], threads_[thread].time};
}

bool Order::before(const Stamp& access, uint32_t thread) const {
  if (access.thread == kNobody || access.thread == thread) return true;
  const Clock& clock = known(thread);
  if (access.epoch < clock.epochs[block_of(access.thread)]) return true;
  const auto time = clock.times.find(access.thread);
  return time != clock.times.end() && access.time <= time->second;
}

}  // namespace emu
