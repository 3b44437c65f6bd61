#include "math/rules/nadam.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::NAdam>(const ChunkValues&, int64_t, const StepDecision&,
                                                         const RowRule&);
