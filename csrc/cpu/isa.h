// One binary for every CPU: each kernel is compiled once per instruction set and chosen when the program runs.
//
// A kernel's body is a forced-inline template; the functions that GRADOPS_ISA_CLONES stamps out carry the target
// attribute, and the body takes their vector width. Every set gives the same bits: reductions run over a fixed number
// of lanes, and no multiply is ever fused with an add (-ffp-contract=off).
#pragma once

#include <string>

namespace gradops::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };
constexpr int kIsaCount = 3;

#if defined(__x86_64__) && !defined(__clang__)
#define GRADOPS_TARGET_AVX2 __attribute__((target("avx2,f16c")))
#define GRADOPS_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,prefer-vector-width=512")))
#elif defined(__x86_64__)
#define GRADOPS_TARGET_AVX2 __attribute__((target("avx2,f16c")))
#define GRADOPS_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c")))
#else
#define GRADOPS_TARGET_AVX2
#define GRADOPS_TARGET_AVX512
#endif

// Defines struct NAME<TEMPLATE PARAMETERS> whose member `table[isa]` is BODY compiled for that instruction set.
#define GRADOPS_ISA_CLONES(NAME, BODY, TEMPLATE, RETURN, PARAMS, ARGS)            \
  template <TEMPLATE>                                                             \
  struct NAME {                                                                   \
    static RETURN baseline PARAMS { return BODY ARGS; }                           \
    GRADOPS_TARGET_AVX2 static RETURN avx2 PARAMS { return BODY ARGS; }           \
    GRADOPS_TARGET_AVX512 static RETURN avx512 PARAMS { return BODY ARGS; }       \
    static constexpr RETURN(*table[kIsaCount]) PARAMS = {baseline, avx2, avx512}; \
  }

// The instruction set in use: the best that this machine has, unless set_isa chose a lesser one.
extern Isa chosen_isa;
inline Isa current_isa() { return chosen_isa; }

// "baseline", "avx2" or "avx512". Throws std::invalid_argument for another name or one that this machine lacks.
void set_isa(const std::string& name);
const char* isa_name(Isa isa);

}  // namespace gradops::cpu
