#include "math/rules/adamax.h"

#include "cpu/update_chunk.h"

template void gradops::cpu::update_chunk<gradops::Adamax>(const ChunkValues&, int64_t, const StepDecision&,
                                                          const RowRule&);
