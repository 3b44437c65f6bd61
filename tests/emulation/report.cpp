// Reports as JSON, and the door for Python's ctypes.
#include <sstream>

#include "runtime.h"

namespace emu {
namespace {

uint64_t seed = 0;
std::vector<std::string> reports;  // of the launches since Python last asked

std::string quoted(const std::string& text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c == '\n' ? ' ' : c;
  }
  return quoted + "\"";
}

template <class List, class Write>
void write_list(std::ostream& out, const List& list, Write write) {
  const char* separator = "";
  for (const auto& item : list) {
    out << separator;
    write(item);
    separator = ", ";
  }
}

}  // namespace

uint64_t session_seed() { return seed; }

void keep(const Report& report) { reports.push_back(report.json()); }

std::string Report::json() const {
  std::ostringstream out;
  out << "{\"barriers\": " << barriers << ", \"grid_barriers\": " << grid_barriers
      << ", \"warp_operations\": " << warp_operations << ", \"fences\": " << fences << ", \"switches\": " << switches
      << ", \"faults\": [";
  write_list(out, faults, [&](const std::string& fault) { out << quoted(fault); });
  out << "], \"traffic\": {";
  write_list(out, traffic, [&](const auto& entry) {
    const Traffic& t = entry.second;
    out << quoted(entry.first) << ": {\"loads\": " << t.loads << ", \"stores\": " << t.stores
        << ", \"load_bytes\": " << t.load_bytes << ", \"store_bytes\": " << t.store_bytes
        << ", \"distinct_load_bytes\": " << t.distinct_load_bytes
        << ", \"distinct_store_bytes\": " << t.distinct_store_bytes << ", \"atomics\": " << t.atomics
        << ", \"polls\": " << t.polls << "}";
  });
  out << "}}";
  return out.str();
}

}  // namespace emu

// Also where the host hides its symbols.
#pragma GCC visibility push(default)
extern "C" {

void emu_watch(const char* name, const void* begin, size_t bytes, size_t element_bytes, int writable) {
  emu::watch(name, begin, bytes, element_bytes, writable != 0);
}

void emu_unwatch_all() { emu::unwatch_all(); }

void emu_set_seed(uint64_t seed) { emu::seed = seed; }

// A JSON list with a report for each launch since the last call; valid until the next.
const char* emu_take_reports() {
  static std::string text;
  std::ostringstream out;
  out << "[";
  emu::write_list(out, emu::reports, [&](const std::string& report) { out << report; });
  out << "]";
  emu::reports.clear();
  text = out.str();
  return text.c_str();
}
}
#pragma GCC visibility pop
