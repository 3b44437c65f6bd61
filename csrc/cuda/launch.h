// What the host calls: a step over tables that lie on the device. The caller sets the device and chooses the stream.
#pragma once

#include <span>
#include <string>

#include "cuda/step_args.h"

struct CUstream_st;

namespace gradops::cuda {

using Stream = CUstream_st*;

// What a device offers that decides the form of a launch.
struct DeviceLimits {
  int multiprocessors = 0;
  int64_t shared_bytes = 0;  // that one block may ask for
  bool cooperative = false;
  bool large_params = false;  // 32,764 bytes of kernel parameters
};

// Chosen once for each table.
struct LaunchForm {
  bool one_launch = false;
  bool large_params = false;
  int32_t blocks = 1;
  int32_t shared_slots = 0;
  int64_t shared_bytes = 0;
  std::string description;
};

constexpr int64_t kSharedStateBytes = 1024;  // of a block, before its parked gradients
constexpr int64_t kSharedSlotBytes = int64_t{kWarps} * kPiece * sizeof(float);

constexpr int32_t shared_slots(int64_t shared_bytes) {
  return static_cast<int32_t>((shared_bytes - kSharedStateBytes) / kSharedSlotBytes);
}
constexpr int64_t shared_bytes(int32_t slots) { return kSharedStateBytes + slots * kSharedSlotBytes; }

// How many blocks of the one-pass kernel are resident at a time on a multiprocessor of the current device that gives
// them so much shared memory; also makes the kernels ready for it.
int resident_blocks(int64_t shared_bytes);

DeviceLimits device_limits(int device);
LaunchForm choose_form(const DeviceLimits& limits, int32_t chunk_count);

// Whether the pointers and rules of a step travel as kernel parameters. Else StepArgs::grads and ::groups must be
// device arrays.
bool travels_inline(const LaunchForm& form, size_t rows, size_t groups);

// A whole step. `grads` has one entry a row, null where there is none; an empty gradient has any address but null.
// `grads` and `groups` are not read where `args` names device arrays. Throws std::runtime_error if a launch fails.
void one_pass_step(const LaunchForm& form, StepArgs args, std::span<const void* const> grads,
                   std::span<const GroupRule> groups, Stream stream);

// Sums of squares of the stored parameters, for rows whose byte in `marked` (a device array; null: for all) is not 0.
void param_stats(const LaunchForm& form, const StepArgs& args, const uint8_t* marked, Stream stream);

}  // namespace gradops::cuda
