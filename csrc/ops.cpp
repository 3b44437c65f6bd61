// torch.ops.gradops: the phases of a step as functional operators over lists of tensors, for torch.compile and for
// people who build their own optimizer. Documented, with their fake kernels, in gradops/ops.py; each device's
// implementation is in cpu/ops.cpp and cuda/host/ops.cpp; adam_step_ is a door to _update_, in Python.
#include <torch/library.h>

TORCH_LIBRARY(gradops, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "grad_stats(Tensor[] grads, Tensor? grad_scale=None, float? clip_value=None, float norm_type=2.0)"
      " -> (Tensor grad_norm, Tensor norms, Tensor abs_max, Tensor nonfinite)",
      tags);
  m.def(
      "adam_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor lr, *, Tensor? grad_scale=None,"
      " Tensor? clip_coef=None, Tensor? found_inf=None, float? clip_value=None, float beta1=0.9, float beta2=0.999,"
      " float eps=1e-8, float weight_decay=0.0, bool decoupled=False, bool maximize=False, float l1=0.0) -> ()",
      tags);
  m.def(
      "_update_(str rule, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, Tensor(c!)[] steps,"
      " Tensor(d!)[] scalars, Tensor lr, *,"
      " float[] hyper, Tensor? grad_scale=None, Tensor? clip_coef=None, Tensor? found_inf=None,"
      " float? clip_value=None, float weight_decay=0.0, bool decoupled=False, bool maximize=False, float l1=0.0,"
      " Tensor? grad_factors=None) -> ()",
      tags);
  m.def("clip_grad_norm_(Tensor(a!)[] grads, float max_norm, float norm_type=2.0) -> Tensor", tags);
  m.def("unscale_(Tensor(a!)[] grads, Tensor grad_scale) -> Tensor", tags);
  m.def(
      "update_loss_scale_(Tensor(a!) scale, Tensor(b!) growth_tracker, Tensor found_inf, *, float growth_factor=2.0,"
      " float backoff_factor=0.5, int growth_interval=2000, float min_scale=6.103515625e-05,"
      " float max_scale=16777216.0) -> ()",
      tags);
  m.def("activation_stats(Tensor x, float near_zero) -> (Tensor measures, Tensor counts)", tags);
}
