#include "math/rules/adagrad.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::Adagrad>(const ChunkValues&, int64_t, const StepDecision&,
                                                           const RowRule&);
