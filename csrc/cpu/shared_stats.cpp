#include "cpu/shared_stats.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>

namespace gradops {
namespace {

// A table of numbers that every process fills and then has of all: a line for each kind, a column for each row and one
// more. `kinds` says how a line is merged, as Python's gather has it.
class Records {
 public:
  Records(std::string kinds, size_t rows)
      : kinds_(std::move(kinds)),
        columns_(static_cast<int64_t>(rows) + 1),
        mine_(at::zeros({static_cast<int64_t>(kinds_.size()), columns_},
                        at::TensorOptions(at::kDouble).device(at::kCPU))),
        written_(mine_.mutable_data_ptr<double>()) {}

  double& mine(int64_t line, int64_t column) { return written_[line * columns_ + column]; }

  void gather(const Exchange& exchange, double norm_type = 2.0) {
    all_ = exchange.gather(mine_, kinds_, norm_type);
    numbers_ = all_.numbers.const_data_ptr<double>();
    counts_ = all_.counts.defined() ? all_.counts.const_data_ptr<bool>() : nullptr;
    processes_ = all_.numbers.size(0);
  }

  double largest(int64_t line, int64_t column) const {
    double found = of(0, line, column);
    for (int64_t process = 1; process < processes_; ++process) found = std::max(found, of(process, line, column));
    return found;
  }

  PowerSum merged(int64_t line, int64_t row, double p = 2.0) const {
    PowerSum sum;
    for_each(line, row, [&](double norm) {
      if (norm > 0.0) sum.merge(1.0, norm, p);
    });
    return sum;
  }

  double sum(int64_t line, int64_t row) const {
    double sum = 0.0;
    for_each(line, row, [&](double value) { sum += value; });
    return sum;
  }

 private:
  double of(int64_t process, int64_t line, int64_t column) const {
    const int64_t lines = static_cast<int64_t>(kinds_.size());
    return numbers_[(process * lines + line) * columns_ + column];
  }

  // Of the processes whose numbers of this row count, in their order.
  template <class Visit>
  void for_each(int64_t line, int64_t row, const Visit& visit) const {
    for (int64_t process = 0; process < processes_; ++process) {
      if (counts_ == nullptr || counts_[process * (columns_ - 1) + row]) visit(of(process, line, row));
    }
  }

  std::string kinds_;
  int64_t columns_;
  at::Tensor mine_;
  double* written_;
  Exchange::Gathered all_;
  const double* numbers_ = nullptr;
  const bool* counts_ = nullptr;
  int64_t processes_ = 0;
};

// The lines of the exchange before the decision.
enum Line { kGradNorms, kAbsMax, kNonfinite, kParamNorms };
constexpr double kTakesNoPart = -1.0;  // in place of bits

}  // namespace

void share_stats(const Exchange& exchange, std::span<const ParamRow> rows, const cpu::Norm& norm, RowStats& stats,
                 UnitClip* units, bool& found_inf) {
  const bool params = !stats.params.empty();
  const int64_t unit_line = params ? kParamNorms + 1 : kParamNorms;
  const auto shared_unit = [&](size_t row) -> cpu::UnitSquares* {
    return units != nullptr && rows[row].is_one_unit() ? units->only_unit(row) : nullptr;
  };
  Records records(std::string("nms") + (params ? "n" : "") + (units == nullptr ? "" : "ss"), rows.size());
  for (size_t row = 0; row < rows.size(); ++row) {
    const GradStats& grads = stats.grads[row];
    records.mine(kGradNorms, row) = grads.power.norm(norm.p);
    records.mine(kAbsMax, row) = stats.taking_part[row] ? grads.abs_max_bits : kTakesNoPart;
    records.mine(kNonfinite, row) = static_cast<double>(grads.nonfinite);
    if (params) records.mine(kParamNorms, row) = stats.params[row].norm(2.0);
    if (const cpu::UnitSquares* unit = shared_unit(row)) {
      records.mine(unit_line, row) = unit->grad;
      records.mine(unit_line + 1, row) = unit->param;
    }
  }
  records.mine(kAbsMax, rows.size()) = found_inf;
  records.gather(exchange, norm.p);
  for (size_t row = 0; row < rows.size(); ++row) {
    const double abs_max_bits = records.largest(kAbsMax, row);
    stats.taking_part[row] = abs_max_bits != kTakesNoPart;
    GradStats& grads = stats.grads[row] = {};
    grads.power = records.merged(kGradNorms, row, norm.p);
    grads.abs_max_bits = stats.taking_part[row] ? static_cast<int32_t>(abs_max_bits) : 0;
    grads.nonfinite = static_cast<int64_t>(records.sum(kNonfinite, row));
    // Only a replica has seen it, whose numbers do not count.
    if (grads.nonfinite == 0 && grads.abs_max_bits >= kInfBits) grads.nonfinite = 1;
    if (params) stats.params[row] = records.merged(kParamNorms, row);
    if (cpu::UnitSquares* unit = shared_unit(row)) {
      *unit = {records.sum(unit_line, row), records.sum(unit_line + 1, row)};
    }
  }
  found_inf = records.largest(kAbsMax, rows.size()) > 0.0;
}

void share_updates(const Exchange& exchange, std::span<PowerSum> moved, std::span<PowerSum> params, float& smallest) {
  Records records("nnm", moved.size());
  for (size_t row = 0; row < moved.size(); ++row) {
    records.mine(0, row) = moved[row].norm(2.0);
    records.mine(1, row) = params[row].norm(2.0);
  }
  records.mine(2, moved.size()) = -smallest;
  records.gather(exchange);
  for (size_t row = 0; row < moved.size(); ++row) {
    moved[row] = records.merged(0, row);
    params[row] = records.merged(1, row);
  }
  smallest = static_cast<float>(-records.largest(2, moved.size()));
}

}  // namespace gradops
