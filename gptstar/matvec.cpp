// A matrix times a vector on a CPU: y[n] = sum_k w[n, k] x[k] (+ bias[n]).
//
// Every weight is read once, so all that counts is to keep the memory busy: a row at a time, two sums side by side,
// vectors as wide as the processor's registers, and each thread a piece of the matrix of its own.

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include <omp.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 64;  // bytes of a register
#else
constexpr int WIDTH = 32;
#endif
constexpr int64_t LANES = WIDTH / 4, SMALL = 1 << 16;  // below this a second thread costs more than it brings

typedef float Floats __attribute__((vector_size(WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH / 2)));

inline void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }

inline void load(const uint16_t* from, Floats& to) {  // bfloat16 is the upper half of a float
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  Bits bits = __builtin_convertvector(halves, Bits) << 16;
  std::memcpy(&to, &bits, sizeof to);
}

inline float number(float x) { return x; }

inline float number(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

template <typename Weight>
inline float dot(const Weight* w, const float* x, int64_t K) {
  Floats sum = {}, other = {}, w_now, x_now;
  int64_t k = 0;
  for (; k + 2 * LANES <= K; k += 2 * LANES) {
    load(w + k, w_now), load(x + k, x_now);
    sum += w_now * x_now;
    load(w + k + LANES, w_now), load(x + k + LANES, x_now);
    other += w_now * x_now;
  }
  sum += other;
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += sum[lane];
  for (; k < K; k++) total += number(w[k]) * x[k];
  return total;
}

typedef int8_t Bytes __attribute__((vector_size(WIDTH / 2)));
typedef int16_t Shorts __attribute__((vector_size(WIDTH)));
typedef int32_t Ints __attribute__((vector_size(2 * WIDTH)));

inline void load(const int8_t* from, Shorts& to) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  to = __builtin_convertvector(bytes, Shorts);
}

// Exact for codes from -127 to 127: two products of them fit 16 bits.
inline int32_t dot(const int8_t* w, const int8_t* x, int64_t K) {
  constexpr int64_t STEP = WIDTH / 2;
  Ints sum = {};
  Shorts w_now, x_now, w_next, x_next;
  int64_t k = 0;
  for (; k + 2 * STEP <= K; k += 2 * STEP) {
    load(w + k, w_now), load(x + k, x_now), load(w + k + STEP, w_next), load(x + k + STEP, x_next);
    sum += __builtin_convertvector(w_now * x_now + w_next * x_next, Ints);
  }
  int32_t total = 0;
  for (int lane = 0; lane < STEP; lane++) total += sum[lane];
  for (; k < K; k++) total += int32_t(w[k]) * x[k];
  return total;
}

template <typename Row>
void each_row(int64_t N, int64_t K, Row row) {
#pragma omp parallel if (N * K > SMALL)
  {
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (int64_t n = N * thread / threads; n < N * (thread + 1) / threads; n++) row(n);
  }
}

using torch::stable::Tensor;

Tensor result(const Tensor& x, int64_t N) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = N;
  return torch::stable::new_empty(x, shape);
}

uint16_t rounded(float x) {  // to bfloat16, halves to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// x @ weight.T + bias for x (..., K) of one row; all of them float32 or bfloat16, contiguous.
Tensor matvec(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  int64_t N = weight.size(0), K = weight.size(1);
  Tensor y = result(x, N);
  if (x.scalar_type() == torch::headeronly::ScalarType::Float) {
    auto w = static_cast<const float*>(weight.data_ptr()), from = static_cast<const float*>(x.data_ptr());
    auto plus = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
    auto to = static_cast<float*>(y.data_ptr());
    each_row(N, K, [=](int64_t n) { to[n] = dot(w + n * K, from, K) + (plus ? plus[n] : 0); });
  } else {
    auto w = static_cast<const uint16_t*>(weight.data_ptr()), narrow = static_cast<const uint16_t*>(x.data_ptr());
    auto plus = bias ? static_cast<const uint16_t*>(bias->data_ptr()) : nullptr;
    auto to = static_cast<uint16_t*>(y.data_ptr());
    std::vector<float> wide(K);
    for (int64_t k = 0; k < K; k++) wide[k] = number(narrow[k]);
    const float* from = wide.data();
    each_row(N, K, [=](int64_t n) { to[n] = rounded(dot(w + n * K, from, K) + (plus ? number(plus[n]) : 0)); });
  }
  return y;
}

// What Int8Matrix does for one row, to the last bit: x in 8 bits with a scale of its own, then the matrix's scales.
Tensor matvec_int8(const Tensor& x, const Tensor& matrix, const Tensor& scales) {
  int64_t N = matrix.size(0), K = matrix.size(1);
  auto from = static_cast<const float*>(x.data_ptr()), scale = static_cast<const float*>(scales.data_ptr());
  auto w = static_cast<const int8_t*>(matrix.data_ptr());
  float largest = 1e-30f;
  int broken = 0;
#pragma omp simd reduction(max : largest) reduction(| : broken)
  for (int64_t k = 0; k < K; k++) {
    float size = from[k] < 0 ? -from[k] : from[k];
    largest = size > largest ? size : largest;
    broken |= !(size <= __FLT_MAX__);
  }
  float x_scale = broken ? __builtin_nanf("") : largest / 127;
  std::vector<int8_t> codes(K);
  int8_t* code = codes.data();
#pragma omp simd
  for (int64_t k = 0; k < K; k++) code[k] = int8_t(__builtin_nearbyintf(from[k] / x_scale));
  Tensor y = result(x, N);
  auto to = static_cast<float*>(y.data_ptr());
  each_row(N, K, [=](int64_t n) { to[n] = float(dot(w + n * K, code, K)) * x_scale * scale[n]; });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gptstar, library) {
  library.def("matvec(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  library.def("matvec_int8(Tensor x, Tensor codes, Tensor scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gptstar, CPU, library) {
  library.impl("matvec", TORCH_BOX(&matvec));
  library.impl("matvec_int8", TORCH_BOX(&matvec_int8));
}
