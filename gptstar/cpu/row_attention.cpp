// Attention of one query a row on a CPU, each over as many keys as its own row has.
//
// Every key and value is read once and little is done with it, so all that counts is to read nothing else: batched
// attention reads, and masks, what the longest row has. A thread takes a row's key/value head, with all the query heads
// that share it, after another.

#include <algorithm>
#include <cmath>
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
constexpr int64_t LANES = WIDTH / 4, SMALL = 1 << 15;  // below this a second thread costs more than it brings

typedef float Floats __attribute__((vector_size(WIDTH)));
typedef int32_t Ints __attribute__((vector_size(WIDTH)));

inline Floats load(const float* from) {
  Floats now;
  std::memcpy(&now, from, sizeof now);
  return now;
}

inline void store(Floats now, float* to) { std::memcpy(to, &now, sizeof now); }

inline float total(Floats sum) {
  float result = 0;
  for (int lane = 0; lane < LANES; lane++) result += sum[lane];
  return result;
}

inline float dot(const float* a, const float* b, int64_t n) {
  Floats sum = {}, other = {};
  int64_t i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    sum += load(a + i) * load(b + i);
    other += load(a + i + LANES) * load(b + i + LANES);
  }
  float result = total(sum + other);
  for (; i < n; i++) result += a[i] * b[i];
  return result;
}

inline void add(const float* x, float times, float* to, int64_t n) {  // to += times * x
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(load(to + i) + times * load(x + i), to + i);
  for (; i < n; i++) to[i] += times * x[i];
}

// e^x for x <= 0, right to 2e-7 of it, and 0 from -87 on, where fp32 ends: 2^n times a polynomial for the rest. What is
// no number stays none.
inline Floats exponential(Floats x) {
  Ints alive = ~(x <= -87.0f);
  Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the rounded number is in the last bits
  Floats n = shifted - 12582912.0f, r = x - n * 0.693145752f - n * 1.42860677e-6f;
  Floats p = 0.00833333333f + r * 0.00138888889f;
  p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (0.0416666667f + r * p))));
  Ints bits, power;
  std::memcpy(&bits, &shifted, sizeof bits);
  power = (bits + 127) << 23;
  Floats two;
  std::memcpy(&two, &power, sizeof two);
  Floats result = p * two;
  Ints kept;
  std::memcpy(&kept, &result, sizeof kept);
  kept &= alive;
  std::memcpy(&result, &kept, sizeof result);
  return result;
}

// Scores to weights that are not divided by their sum yet, which is returned. room: n rounded up to whole registers.
inline float weigh(float* score, int64_t n, int64_t room) {
  float largest = -INFINITY;
  for (int64_t i = 0; i < n; i++) largest = score[i] > largest ? score[i] : largest;
  for (int64_t i = n; i < room; i++) score[i] = -INFINITY;
  Floats sum = {};
  for (int64_t i = 0; i < room; i += LANES) {
    Floats weight = exponential(load(score + i) - largest);
    store(weight, score + i);
    sum += weight;
  }
  return total(sum);
}

using torch::stable::Tensor;

// q (B, H, 1, D), k and v (B, K, S, D) with S * D in order, slot (B,): each query's place, slopes (H,): float32.
Tensor row_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& slot,
                     const std::optional<Tensor>& slopes, double scale, double softcap, int64_t window) {
  const int64_t B = q.size(0), H = q.size(1), D = q.size(3), K = k.size(1), S = k.size(2), group = H / K;
  Tensor y = torch::stable::new_empty(q, {B, H, 1, D});
  auto q_at = static_cast<const float*>(q.data_ptr()), k_at = static_cast<const float*>(k.data_ptr());
  auto v_at = static_cast<const float*>(v.data_ptr());
  auto slope = slopes ? static_cast<const float*>(slopes->data_ptr()) : nullptr;
  auto place = static_cast<const int64_t*>(slot.data_ptr());
  auto to = static_cast<float*>(y.data_ptr());
  const int64_t q_row = q.stride(0), q_head = q.stride(1), k_row = k.stride(0), k_head = k.stride(1);
  const int64_t v_row = v.stride(0), v_head = v.stride(1), k_step = k.stride(2), v_step = v.stride(2);
  int64_t longest = 0, all = 0;
  for (int64_t b = 0; b < B; b++) {
    longest = std::max(longest, place[b] + 1);
    all += place[b] + 1;
  }
  longest = (std::min(longest, S) + LANES - 1) / LANES * LANES;
#pragma omp parallel if (all * H * D > SMALL)
  {
    std::vector<float> scores(group * longest);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < B * K; task++) {
      const int64_t b = task / K, head = task % K, last = std::min(place[b], S - 1);
      const int64_t first = window > 0 ? std::max<int64_t>(0, last + 1 - window) : 0, n = last + 1 - first;
      const int64_t room = (n + LANES - 1) / LANES * LANES;
      const float *keys = k_at + b * k_row + head * k_head + first * k_step;
      const float *values = v_at + b * v_row + head * v_head + first * v_step;
      for (int64_t s = 0; s < n; s++) {
        for (int64_t g = 0; g < group; g++) {
          const int64_t h = head * group + g;
          float score = dot(q_at + b * q_row + h * q_head, keys + s * k_step, D) * float(scale);
          if (softcap > 0) score = float(softcap) * std::tanh(score / float(softcap));
          scores[g * longest + s] = slope ? score + slope[h] * float(first + s - place[b]) : score;
        }
      }
      for (int64_t g = 0; g < group; g++) {
        float* out = to + (b * H + head * group + g) * D;
        float* weights = scores.data() + g * longest;
        const float sum = weigh(weights, n, room);
        std::memset(out, 0, D * sizeof(float));
        for (int64_t s = 0; s < n; s++) weights[s] /= sum;
      }
      for (int64_t s = 0; s < n; s++) {
        for (int64_t g = 0; g < group; g++) {
          add(values + s * v_step, scores[g * longest + s], to + (b * H + head * group + g) * D, D);
        }
      }
    }
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gptstar, library) {
  library.def(
      "row_attention(Tensor q, Tensor k, Tensor v, Tensor slot, Tensor? slopes, float scale, float softcap, int window)"
      " -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gptstar, CPU, library) { library.impl("row_attention", TORCH_BOX(&row_attention)); }
