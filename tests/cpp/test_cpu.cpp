// The CPU kernels and conversions: against plain loops, and the same bits for every instruction set of this machine.
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/stat_lanes.h"
#include "cpu/tensor_view.h"
#include "math/rules/adam.h"
#include "math/rules/sgd.h"

using namespace gradops;
using namespace gradops::cpu;

namespace {

std::vector<const char*> instruction_sets() {
  std::vector<const char*> available;
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    try {
      set_isa(name);
      available.push_back(name);
    } catch (const std::invalid_argument&) {
    }
  }
  return available;
}

std::vector<float> random_values(int64_t n, float scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

bool same_bits(const ChunkStats& a, const ChunkStats& b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

void chunk_norms_are_right_for_every_size_and_magnitude() {
  for (const int64_t n : {0, 1, 31, 32, 33, 1000, 8191, 8192}) {
    for (const float scale : {1e-30f, 1e-20f, 1.0f, 1e20f, 1e30f}) {
      const std::vector<float> grad = random_values(n, scale, static_cast<unsigned>(n));
      for (const double p : {1.0, 2.0, 2.5, static_cast<double>(INFINITY)}) {
        const ChunkStats chunk = stats_of_chunk(grad.data(), n, Unscaling{}, {norm_type_of(p), p});
        GradStats stats;
        stats.merge(chunk, p);
        double largest = 0.0;
        for (const float x : grad) largest = std::fmax(largest, std::fabs(x));
        double sum = 0.0;
        for (const float x : grad) sum += std::pow(std::fabs(x) / largest, p);
        const double expected = n == 0 ? 0.0 : std::isinf(p) ? largest : largest * std::pow(sum, 1.0 / p);
        CHECK(std::fabs(stats.norm(p, INFINITY) - expected) <= 2e-6 * expected);
        CHECK(stats.abs_max() == static_cast<float>(largest));
      }
    }
  }
}

void unscaled_statistics_are_those_of_the_multiplied_and_clamped_values() {
  for (const float inv_scale : {1.0f, 0x1p-16f, 0x1p20f, 0.3f}) {
    for (const float scale : {1e-30f, 1e-20f, 1.0f, 1e20f, 3e32f}) {
      for (const float clip_value : {INFINITY, 0.25f * scale * inv_scale}) {
        const std::vector<float> grad = random_values(kChunk, scale, 4);
        std::vector<float> multiplied = grad, clamped = grad;
        for (float& x : multiplied) x *= inv_scale;
        for (float& x : clamped) x = clamp_grad(x * inv_scale, clip_value);
        for (const double p : {1.0, 2.0, 2.5, static_cast<double>(INFINITY)}) {
          const Norm norm{norm_type_of(p), p};
          GradStats stats, unclamped, expected;
          stats.merge(stats_of_chunk(grad.data(), kChunk, {inv_scale, clip_value}, norm), p);
          unclamped.merge(stats_of_chunk(multiplied.data(), kChunk, Unscaling{}, norm), p);
          expected.merge(stats_of_chunk(clamped.data(), kChunk, Unscaling{}, norm), p);
          CHECK(stats.abs_max_bits == unclamped.abs_max_bits && stats.nonfinite == unclamped.nonfinite);
          CHECK((scale == 3e32f && inv_scale > 1.0f) == (stats.nonfinite > 0));
          const double right = unclamped.nonfinite > 0 ? INFINITY : expected.norm(p, INFINITY);
          const double seen = stats.norm(p, clip_value);
          CHECK(seen == right || std::fabs(seen - right) <= 2e-6 * right);
        }
      }
    }
  }
}

void every_instruction_set_gives_the_same_bits() {
  const int64_t n = 8192 - 5;
  const std::vector<float> grad = random_values(n, 3.0f, 1);
  const std::vector<const char*> sets = instruction_sets();
  std::vector<ChunkStats> stats;
  std::vector<std::vector<float>> params;
  for (const char* name : sets) {
    set_isa(name);
    stats.push_back(stats_of_chunk(grad.data(), n, Unscaling{0.3f, 2.0f}, Norm{}));
    std::vector<float> param = random_values(n, 1.0f, 2), m = random_values(n, 0.1f, 3), v(n, 0.01f), vmax(n, 0.02f);
    const HyperParams hyper{.weight_decay = 0.1, .own = {0.9, 0.999, 1e-8, 1.0}, .variant = Adam::kAmsgrad};
    update_chunk<Adam>({param.data(), grad.data(), {m.data(), v.data(), vmax.data()}}, n, StepDecision{},
                       row_rule<Adam>(hyper, {1e-2, 3.0}));
    params.push_back(param);
  }
  for (size_t i = 1; i < sets.size(); ++i) {
    CHECK(same_bits(stats[i], stats[0]));
    CHECK(std::memcmp(params[i].data(), params[0].data(), n * sizeof(float)) == 0);
  }
  CHECK(sets.size() >= 1);
}

void chunks_side_by_side_have_the_bits_of_each_alone() {
  for (const char* name : instruction_sets()) {
    set_isa(name);
    std::vector<std::vector<float>> chunks;
    for (const float scale : {1.0f, 1e-25f, 1e25f, 3.0f}) chunks.push_back(random_values(kChunk, scale, 7));
    chunks[3][5] = NAN;
    chunks[3][kChunk - 1] = INFINITY;
    ChunksOfValues together;
    for (int i = 0; i < kSideBySide; ++i) together[i] = chunks[i].data();
    for (const double p : {1.0, 2.0, 2.5, static_cast<double>(INFINITY)}) {
      const Norm norm{norm_type_of(p), p};
      for (const Unscaling& unscaling : {Unscaling{}, Unscaling{0x1p-16f, INFINITY}, Unscaling{0.3f, 2.0f}}) {
        ChunkStats stats[kSideBySide];
        stats_side_by_side(together, unscaling, norm, stats);
        for (int i = 0; i < kSideBySide; ++i) {
          CHECK(same_bits(stats[i], stats_of_chunk(together[i], kChunk, unscaling, norm)));
        }
      }
    }
  }
}

void what_an_update_does_besides_has_the_bits_of_doing_it_afterwards() {
  for (const char* name : instruction_sets()) {
    set_isa(name);
    for (const int64_t n : {1, 33, 255, 256, 257, 5000, 8192}) {
      for (const float scale : {1.0f, 1e-25f, 1e25f}) {
        for (const float weight : {1e-3f, 0.7f, 1.0f}) {
          const std::vector<float> grad = random_values(n, scale, 1), before = random_values(n, scale, 2);
          std::vector<float> param = before, buffer(n, 0.0f), averages = random_values(n, scale, 3), moved(n);
          std::vector<float> alone = before, buffer_alone = buffer, averages_alone = averages, moved_alone = before;
          const HyperParams hyper{.own = {0.9, 0.0, 0.0}, .variant = Sgd::kMomentum};
          const RowRule rule = row_rule<Sgd>(hyper, {0.1, 3.0});
          StatLanes param_lanes, moved_lanes;
          param_lanes.clear();
          moved_lanes.clear();
          update_chunk<Sgd>({param.data(),
                             grad.data(),
                             {buffer.data()},
                             {averages.data(), weight, moved.data(), &moved_lanes, &param_lanes}},
                            n, StepDecision{}, rule);

          update_chunk<Sgd>({alone.data(), grad.data(), {buffer_alone.data()}}, n, StepDecision{}, rule);
          average_chunk(alone.data(), averages_alone.data(), n, weight);
          subtract_chunk(alone.data(), moved_alone.data(), n);
          CHECK(param == alone && param != before && buffer == buffer_alone);
          CHECK(averages == averages_alone && averages != random_values(n, scale, 3));
          CHECK(moved == moved_alone && moved != std::vector<float>(n, 0.0f));
          CHECK(same_bits(stats_of_lanes(param_lanes, param.data(), n),
                          stats_of_chunk(alone.data(), n, Unscaling{}, Norm{})));
          CHECK(same_bits(stats_of_lanes(moved_lanes, moved.data(), n),
                          stats_of_chunk(moved_alone.data(), n, Unscaling{}, Norm{})));
        }
      }
    }
  }
}

void half_precision_survives_the_way_in_and_out() {
  for (const char* name : instruction_sets()) {
    set_isa(name);
    for (const Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
      std::vector<uint16_t> all(65536), back(65536);
      for (int i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
      std::vector<float> values(65536);
      copy_in({all.data(), nullptr, dtype}, 0, 65536, values.data());
      copy_out({back.data(), nullptr, dtype}, 0, 65536, values.data());
      int changed = 0;
      for (int i = 0; i < 65536; ++i) changed += back[i] != all[i] && !std::isnan(values[i]);
      CHECK(changed == 0);
    }
  }
}

void rounding_to_half_precision_is_to_nearest_even() {
  // Between 1 and its successors: halfway goes to the even one, anything else to the nearer one.
  const std::vector<float> values = {1.0f + 0x1p-11f,
                                     1.0f + 0x1p-10f + 0x1p-11f,
                                     1.0f + 0x1p-11f + 0x1p-20f,
                                     65519.0f,
                                     65520.0f,
                                     0x1p-25f,
                                     0x1p-25f + 0x1p-40f,
                                     -0x1p-24f};
  const std::vector<uint16_t> expected = {0x3c00, 0x3c02, 0x3c01, 0x7bff, 0x7c00, 0x0000, 0x0001, 0x8001};
  for (const char* name : instruction_sets()) {
    set_isa(name);
    std::vector<uint16_t> rounded(values.size());
    copy_out({rounded.data(), nullptr, Dtype::kFloat16}, 0, static_cast<int64_t>(values.size()), values.data());
    CHECK(rounded == expected);
  }
}

void strided_chunks_read_and_write_only_their_elements() {
  // A transposed 7 x 5 matrix inside a larger one: element (i, j) at j * 9 + i * 2.
  const Layout layout{{7, 5}, {2, 9}};
  std::vector<float> memory(64, -1.0f);
  for (int i = 0; i < 7; ++i) {
    for (int j = 0; j < 5; ++j) memory[j * 9 + i * 2] = static_cast<float>(i * 5 + j);
  }
  const TensorView view{memory.data(), &layout, Dtype::kFloat32};
  float chunk[20];
  copy_in(view, 8, 20, chunk);
  for (int k = 0; k < 20; ++k) CHECK(chunk[k] == static_cast<float>(8 + k));
  const std::vector<float> before = memory;
  for (float& value : chunk) value += 100.0f;
  copy_out(view, 8, 20, chunk);
  int changed = 0;
  for (size_t i = 0; i < memory.size(); ++i) changed += memory[i] != before[i];
  CHECK(changed == 20);
  CHECK(memory[0] == 0.0f && memory[3 * 9 + 1 * 2] == 108.0f);
}

}  // namespace

int main() {
  chunk_norms_are_right_for_every_size_and_magnitude();
  unscaled_statistics_are_those_of_the_multiplied_and_clamped_values();
  every_instruction_set_gives_the_same_bits();
  chunks_side_by_side_have_the_bits_of_each_alone();
  what_an_update_does_besides_has_the_bits_of_doing_it_afterwards();
  half_precision_survives_the_way_in_and_out();
  rounding_to_half_precision_is_to_nearest_even();
  strided_chunks_read_and_write_only_their_elements();
  return done("test_cpu");
}
