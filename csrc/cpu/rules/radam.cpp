#include "math/rules/radam.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::RAdam>(const ChunkValues&, int64_t, const StepDecision&,
                                                         const RowRule&);
