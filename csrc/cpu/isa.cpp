#include "cpu/isa.h"

#include <stdexcept>

namespace gradops::cpu {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline", "avx2", "avx512"};

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("f16c")) return Isa::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::kAvx512 : Isa::kAvx2;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace

Isa chosen_isa = best_isa();

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

void set_isa(const std::string& name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (name != kNames[i]) continue;
    if (i > static_cast<int>(best_isa())) throw std::invalid_argument("this CPU has no " + name);
    chosen_isa = static_cast<Isa>(i);
    return;
  }
  throw std::invalid_argument("instruction set must be baseline, avx2 or avx512, got " + name);
}

}  // namespace gradops::cpu
