#include "math/rules/lars.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::Lars>(const ChunkValues&, int64_t, const StepDecision&,
                                                        const RowRule&);
