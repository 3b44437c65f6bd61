#include "math/rules/lion.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::Lion>(const ChunkValues&, int64_t, const StepDecision&,
                                                        const RowRule&);
