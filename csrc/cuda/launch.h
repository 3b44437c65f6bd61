// What the host calls: a step over tables that lie on the device. The caller sets the device and chooses the stream.
#pragma once

#include <algorithm>
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
  int resident_blocks = 0;   // of the one-pass kernel on a multiprocessor, with all that it parks
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

// Gradients that each warp of the one-pass kernel parks in registers, counted in pieces: 128 of a thread's 255
// registers, the rest is what an update needs.
constexpr int kRegisterSlots = 8;

constexpr int64_t kSharedStateBytes = 1024;  // of a block, before its parked gradients
constexpr int64_t kSharedSlotBytes = int64_t{kWarps} * kPiece * sizeof(float);

// What is parked in shared memory by a block that may ask for so many bytes: 14 slots on sm_90 and sm_100 (227 KB), 10
// on sm_80 (163 KB), 6 on sm_120 (99 KB).
constexpr int32_t shared_slots(int64_t shared_bytes) {
  return static_cast<int32_t>((shared_bytes - kSharedStateBytes) / kSharedSlotBytes);
}
constexpr int64_t shared_bytes(int32_t slots) { return kSharedStateBytes + slots * kSharedSlotBytes; }

struct RuleKernels;

// Of the current device. Makes the rule's kernels ready for the launches that the answer allows; without a rule there
// is none over the whole grid.
DeviceLimits device_limits(int device, const RuleKernels* kernels);

// Whether what is launched on the stream goes into a graph.
bool capturing(Stream stream);

// Switched off by tests and benchmarks, to have the other form where this one is possible.
inline bool one_launch_allowed = true;

// The form for a table of `chunk_count` chunks. A small table takes no more blocks than it has chunks.
inline LaunchForm choose_form(const DeviceLimits& limits, int32_t chunk_count) {
  LaunchForm form;
  form.one_launch = one_launch_allowed && limits.cooperative && limits.resident_blocks > 0;
  form.large_params = limits.large_params;
  form.blocks =
      std::clamp(form.one_launch ? limits.multiprocessors : 2 * limits.multiprocessors, 1, std::max(chunk_count, 1));
  form.shared_slots = form.one_launch ? shared_slots(limits.shared_bytes) : 0;
  form.shared_bytes = shared_bytes(form.shared_slots);
  const int64_t parked = form.blocks * (kRegisterSlots + form.shared_slots) * kSharedSlotBytes;
  form.description =
      form.one_launch ? "one cooperative launch, up to " + std::to_string(parked / 1000000) + " MB parked on the chip"
      : !one_launch_allowed ? "two launches: one launch is switched off"
      : limits.cooperative  ? "two launches: the one-pass kernel does not fit on a multiprocessor"
                            : "two launches: the device has no cooperative launch";
  return form;
}

// A step's arguments. `grads` has one entry a row, null where there is none; an empty gradient has any address but
// null. `grads` and `groups` are not read where `args` names device arrays.
struct StepCall {
  StepArgs args;
  std::span<const void* const> grads;
  std::span<const GroupRule> groups;

  size_t inline_rows() const { return args.grads == nullptr ? grads.size() : 0; }
  size_t inline_groups() const { return args.groups == nullptr ? groups.size() : 0; }

  template <class Args>
  Args packed(int32_t shared_slots) const {
    Args packed;
    packed.step = args;
    packed.step.shared_slots = shared_slots;
    std::copy_n(grads.begin(), inline_rows(), packed.grads);
    std::copy_n(groups.begin(), inline_groups(), packed.groups);
    return packed;
  }
};

template <class Args>
bool fits(size_t rows, size_t groups) {
  return rows <= Args::kMaxGrads && groups <= Args::kMaxGroups;
}

// Whether the pointers and rules of a step travel as kernel parameters. Else StepArgs::grads and ::groups must be
// device arrays.
inline bool travels_inline(const LaunchForm& form, size_t rows, size_t groups) {
  return fits<SmallArgs>(rows, groups) || (form.one_launch && form.large_params && fits<LargeArgs>(rows, groups));
}

using Launches = void (*)(const LaunchForm& form, const StepCall& call, Stream stream);

// The launches of an update rule; each throws std::runtime_error if one fails.
struct RuleKernels {
  Launches step;      // a whole step, in the form that was chosen
  Launches agc_step;  // one whose gradients are clipped by units; what travels inline must fit SmallArgs
  Launches update;    // an update by what args.loss_scale, args.clip_coef and args.found_inf say; nothing is measured

  // The parts of a step whose rows are spread over processes, in their order: see cuda/shards.h. What travels inline
  // must fit SmallArgs; gradients are clipped by units where args.units has any.
  Launches measure_shards;
  Launches plan_shards;
  Launches update_shards;

  // Lets the one-pass kernel take that much shared memory on the current device; returns how many of its blocks a
  // multiprocessor then holds.
  int (*make_one_pass_ready)(int64_t shared_bytes) = nullptr;
};

// Compiled in cuda/rules.
template <UpdateRule Rule>
const RuleKernels& kernels_of();

// The units' factors, between the two launches of an agc_step.
void launch_decide_units(const LaunchForm& form, const SmallArgs& args, Stream stream);

// The first launch of a step that is not one, where parameters are averaged.
void launch_plan_averages(const LaunchForm& form, const SmallArgs& args, Stream stream);

// The last launch of a step that is not one, where updates are tracked.
void launch_write_updates(const LaunchForm& form, const SmallArgs& args, Stream stream);

// The pieces of a step for those who build their own: torch.ops.gradops. They park nothing, run over a table that was
// cut for `form.blocks`, and take gradients beyond what SmallArgs holds as a device array.
//
// Statistics of the gradients into args.stats, and the gradients multiplied in place by what was decided: by the
// inverse of the loss scale whatever was found, or by clip_coef unless an element is not finite.
enum class ScaleBy : int32_t { kNothing, kInvScale, kClipCoef };
void grad_stats(const LaunchForm& form, const StepCall& call, ScaleBy scale_by, Stream stream);

// Moves a loss scale by what `found_inf` says.
void update_loss_scale(float* scale, int64_t* growth_tracker, const float* found_inf, const LossScalePolicy& policy,
                       Stream stream);

// Sums of squares of the stored parameters, for rows whose byte in `marked` (a device array; null: for all) is not 0.
void param_stats(const LaunchForm& form, const StepArgs& args, const uint8_t* marked, Stream stream);

}  // namespace gradops::cuda
