#include "math/rules/rmsprop.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::Rmsprop>(const ChunkValues&, int64_t, const StepDecision&,
                                                           const RowRule&);
