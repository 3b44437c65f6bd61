#include "math/rules/adam.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::Adam>(const ChunkValues&, int64_t, const StepDecision&,
                                                        const RowRule&);
