// What the machine's memory can do at best with a step's traffic: the reads and writes of 32 bytes per float32
// parameter and hardly any arithmetic. Built for the machine it runs on, unlike the extension it is compared with.

#include <cstdint>

extern "C" {

// The gradient is read once for its norm; then gradient, parameter and both moments are read, the last three written.
float stream_side_by_side(const float* grad, float* param, float* first, float* second, int64_t numel) {
  float sum = 0.0f;
#pragma omp parallel for simd schedule(static) reduction(+ : sum)
  for (int64_t i = 0; i < numel; ++i) sum += grad[i];
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < numel; ++i) {
    param[i] += grad[i];
    first[i] += 1.0f;
    second[i] += 1.0f;
  }
  return sum;
}

static float read(const float* values, int64_t numel) {
  float sum = 0.0f;
#pragma omp parallel for simd schedule(static) reduction(+ : sum)
  for (int64_t i = 0; i < numel; ++i) sum += values[i];
  return sum;
}

static void update(float* values, int64_t numel) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < numel; ++i) values[i] += 1.0f;
}

// The same bytes, one array after the other: some memories prefer fewer streams at a time.
float stream_in_turn(const float* grad, float* param, float* first, float* second, int64_t numel) {
  const float sum = read(grad, numel) + read(grad, numel);
  update(param, numel);
  update(first, numel);
  update(second, numel);
  return sum;
}
}
