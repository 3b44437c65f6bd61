// gradops._C: the optimizer's door to the native code. The operators' door is ops.cpp.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "cpu/isa.h"
#include "host/step_plan.h"

#define GRADOPS_TEXT(x) #x
#define GRADOPS_TEXT_OF(x) GRADOPS_TEXT(x)
#if defined(GRADOPS_WITH_CUDA)
#define GRADOPS_CUDA_MAJOR GRADOPS_TEXT_OF(GRADOPS_WITH_CUDA)
#else
#define GRADOPS_CUDA_MAJOR "none"
#endif

namespace gradops {
namespace {

// Read from the file, before anything is loaded: see gradops/building/cache.py.
constexpr char kBuiltFor[] = "gradops was built for torch " TORCH_VERSION " CUDA " GRADOPS_CUDA_MAJOR;

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
  info["torch"] = TORCH_VERSION;
  info["built_for"] = kBuiltFor;
#if defined(GRADOPS_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

std::string set_cpu_capability(const std::string& name) {
  const std::string previous = cpu::isa_name(cpu::current_isa());
  cpu::set_isa(name);
  return previous;
}

std::vector<std::string> rule_names() {
  std::vector<std::string> names;
  for (const UpdateRuleInfo& rule : update_rules()) names.push_back(rule.name);
  return names;
}

StepBuffers make_buffers(const std::vector<at::Tensor>& buffers) {
  constexpr size_t kBuffers = sizeof(StepBuffers) / sizeof(at::Tensor);
  TORCH_CHECK(buffers.size() == kBuffers, "gradops: a step has ", kBuffers, " buffers, got ", buffers.size());
  return {buffers[0], buffers[1], buffers[2], buffers[3], buffers[4], buffers[5], buffers[6], buffers[7]};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
  m.def("has_backend", [](const std::string& device) { return has_backend(at::Device(device)); });
  m.def("update_rules", &rule_names);
  m.def("launch_form", [](const std::string& device) { return launch_form(at::Device(device), update_rules()[0]); });
  m.def("allow_one_launch", &allow_one_launch, py::arg("allowed"));
  m.def("cpu_capability", [] { return cpu::isa_name(cpu::current_isa()); });
  m.def("set_cpu_capability", &set_cpu_capability, py::arg("name"));

  py::class_<LossScalePolicy>(m, "LossScalePolicy")
      .def(py::init<double, double, int64_t, double, double>(), py::arg("growth_factor"), py::arg("backoff_factor"),
           py::arg("growth_interval"), py::arg("min_scale"), py::arg("max_scale"));
  py::class_<RelativeStepPolicy>(m, "RelativeStepPolicy")
      .def(py::init<double, double, int64_t>(), py::arg("cap"), py::arg("floor"), py::arg("warmup_steps"));
  py::class_<SpikeGuardPolicy>(m, "SpikeGuardPolicy")
      .def(py::init<double, double, bool, double, double, double, int64_t, int64_t>(), py::arg("ratio"),
           py::arg("z_score"), py::arg("skips"), py::arg("lr_cut"), py::arg("lr_growth"), py::arg("min_lr_factor"),
           py::arg("history"), py::arg("warmup_steps"));
  py::class_<EmaPolicy>(m, "EmaPolicy")
      .def(py::init<double, double, double, double, double, double, double>(), py::arg("decay"), py::arg("min_decay"),
           py::arg("inv_gamma"), py::arg("power"), py::arg("tau"), py::arg("start"), py::arg("every"));
  py::class_<StepSettings>(m, "StepSettings")
      .def(py::init([](double max_norm, double norm_type, double clip_value, const RelativeStepPolicy* relative_step,
                       const LossScalePolicy* loss_scale_policy, const SpikeGuardPolicy* guard, bool track_updates,
                       double l1, bool agc, const EmaPolicy* ema) {
             StepSettings settings{max_norm, norm_type, clip_value, {}, {}, {}, track_updates, l1, agc, {}};
             if (ema != nullptr) settings.ema = *ema;
             if (relative_step != nullptr) settings.relative_step = *relative_step;
             if (loss_scale_policy != nullptr) settings.loss_scale_policy = *loss_scale_policy;
             if (guard != nullptr) settings.guard = *guard;
             return settings;
           }),
           py::arg("max_norm"), py::arg("norm_type"), py::arg("clip_value"), py::arg("relative_step"),
           py::arg("loss_scale_policy"), py::arg("guard"), py::arg("track_updates"), py::arg("l1"), py::arg("agc"),
           py::arg("ema"));

  py::class_<Exchange, std::shared_ptr<Exchange>>(m, "Exchange")
      .def(py::init<py::object, py::object, py::object, py::object, py::object, int64_t>(), py::arg("dtensor"),
           py::arg("local_tensor"), py::arg("local_grad"), py::arg("gather"), py::arg("counts"), py::arg("processes"));

  py::class_<StepPlan> plan(m, "StepPlan");
  plan.def(py::init([](const std::string& rule, const std::vector<std::pair<std::string, std::string>>& moments,
                       const std::vector<std::string>& scalars, const std::vector<std::string>& hyper,
                       const std::string& decoupled, bool always_decouples) {
             RuleKeys keys{{{}, scalars}, hyper, decoupled, always_decouples};
             for (const auto& [name, because] : moments) keys.state.moments.push_back({name, because});
             return std::make_unique<StepPlan>(rule, keys);
           }),
           py::arg("rule"), py::arg("moments"), py::arg("scalars"), py::arg("hyper"), py::arg("decoupled"),
           py::arg("always_decouples"))
      .def(
          "bind_params",
          [](StepPlan& self, py::handle param_groups, const std::vector<std::string>& names,
             const std::vector<at::Tensor>& buffers, std::shared_ptr<Exchange> exchange) {
            self.bind_params(param_groups, names, make_buffers(buffers), std::move(exchange));
          },
          py::arg("param_groups"), py::arg("names"), py::arg("buffers"), py::arg("exchange").none(true) = nullptr)
      .def("bind_state", &StepPlan::bind_state, py::arg("state"))
      .def("params_without_state", &StepPlan::params_without_state)
      .def(
          "step",
          [](StepPlan& self, py::handle param_groups, py::handle state, const StepSettings& settings,
             std::optional<at::Tensor> loss_scale, bool grads_scaled, std::optional<at::Tensor> found_inf) {
            return self.step(param_groups, state, settings,
                             {std::move(loss_scale), grads_scaled, std::move(found_inf)});
          },
          py::arg("param_groups"), py::arg("state"), py::arg("settings"), py::arg("loss_scale").none(true),
          py::arg("grads_scaled"), py::arg("found_inf").none(true))
      .def("description", &StepPlan::description)
      .def("refresh", &StepPlan::refresh);
}

}  // namespace gradops
