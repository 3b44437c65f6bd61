#include "math/rules/sgd.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::Sgd>(const ChunkValues&, int64_t, const StepDecision&,
                                                       const RowRule&);
