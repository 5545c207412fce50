// A matrix times a vector on a CPU: y[n] = sum_k w[n, k] x[k] (+ bias[n]).
//
// Every weight is read once, so all that counts is to keep the memory busy: a row at a time, two sums side by side,
// vectors as wide as the processor's registers, and each thread a piece of the matrix of its own.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

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
typedef int32_t Codes __attribute__((vector_size(WIDTH)));

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

// gcc 12 takes these two apart number by number unless it is told the instruction.
inline void load(const _Float16* from, Floats& to) {
#if defined(__AVX512F__)
  to = Floats(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  to = Floats(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  typedef _Float16 Narrow __attribute__((vector_size(WIDTH / 2)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  to = __builtin_convertvector(narrow, Floats);
#endif
}

inline void load(const uint8_t* from, Codes& to) {
#if defined(__AVX512F__)
  to = Codes(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  to = Codes(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  typedef uint8_t Narrow __attribute__((vector_size(LANES)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  to = __builtin_convertvector(narrow, Codes);
#endif
}

inline float number(_Float16 x) { return float(x); }

inline float total(Floats lanes) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(__m512(lanes));
#else
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
  return lanes[0];
#endif
}

// Sums of a row of the matrix times R vectors, in progress: two side by side, and what is left at a row's end.
template <int R>
struct Sums {
  Floats even[R] = {}, odd[R] = {};
  float rest[R] = {};

  // K more columns; the vectors begin `stride` numbers apart.
  template <typename Weight>
  inline void add(const Weight* w, const float* x, int64_t stride, int64_t K) {
    Floats w_now, x_now;
    int64_t k = 0;
    for (; k + 2 * LANES <= K; k += 2 * LANES) {
      load(w + k, w_now);
      for (int r = 0; r < R; r++) load(x + r * stride + k, x_now), even[r] += w_now * x_now;
      load(w + k + LANES, w_now);
      for (int r = 0; r < R; r++) load(x + r * stride + k + LANES, x_now), odd[r] += w_now * x_now;
    }
    for (; k < K; k++)
      for (int r = 0; r < R; r++) rest[r] = __builtin_fmaf(number(w[k]), x[r * stride + k], rest[r]);
  }

  inline float sum(int r) const { return total(even[r] + odd[r]) + rest[r]; }
};

template <typename Weight>
inline float dot(const Weight* w, const float* x, int64_t K) {
  Sums<1> sums;
  sums.add(w, x, 0, K);
  return sums.sum(0);
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

// Calls `with` for up to MOST vectors at a time, so that each weight is converted once for all of them.
template <int MOST, typename With>
inline void by_vectors(int64_t n_vector, int64_t first, const With& with) {
  if constexpr (MOST > 0) {
    for (; n_vector - first >= MOST; first += MOST) with(std::integral_constant<int, MOST>(), first);
    by_vectors<MOST - 1>(n_vector, first, with);
  }
}

template <typename Weight>
void add_pieces(const Tensor& x, const std::vector<Tensor>& pieces, bool side_by_side, Tensor& y) {
  int64_t K = x.size(-1), R = x.numel() / K, N = y.size(-1), done = 0;
  auto from = static_cast<const float*>(x.data_ptr());
  auto to = static_cast<float*>(y.data_ptr());
  if (side_by_side) {
    std::vector<std::pair<const Weight*, int64_t>> parts;
    bool in_step = true;  // cuts fall between registers
    for (auto& piece : pieces) {
      parts.emplace_back(static_cast<const Weight*>(piece.data_ptr()), piece.size(1));
      in_step &= piece.size(1) % (2 * LANES) == 0;
    }
    each_row(N, K, [&](int64_t n) {
      if (!in_step) {
        std::vector<float> row;
        for (auto [w, width] : parts)
          for (int64_t k = 0; k < width; k++) row.push_back(number(w[n * width + k]));
        by_vectors<8>(R, 0, [&](auto count, int64_t first) {
          Sums<count> sums;
          sums.add(row.data(), from + first * K, K, K);
          for (int r = 0; r < count; r++) to[(first + r) * N + n] = sums.sum(r);
        });
        return;
      }
      by_vectors<8>(R, 0, [&](auto count, int64_t first) {
        Sums<count> sums;
        int64_t k = 0;
        for (auto [w, width] : parts) sums.add(w + n * width, from + first * K + k, K, width), k += width;
        for (int r = 0; r < count; r++) to[(first + r) * N + n] = sums.sum(r);
      });
    });
    return;
  }
  for (auto& piece : pieces) {
    auto w = static_cast<const Weight*>(piece.data_ptr());
    each_row(piece.size(0), K, [&, done](int64_t n) {
      by_vectors<8>(R, 0, [&](auto count, int64_t first) {
        Sums<count> sums;
        sums.add(w + n * K, from + first * K, K, K);
        for (int r = 0; r < count; r++) to[(first + r) * N + done + n] = sums.sum(r);
      });
    });
    done += piece.size(0);
  }
}

// x @ matrix.T for fp32 x (..., K) and a matrix that lies in pieces, in float32, float16 or bfloat16: one below the
// other, or side by side. All are contiguous.
Tensor matvec_pieces(const Tensor& x, std::vector<Tensor> pieces, bool side_by_side) {
  int64_t N = side_by_side ? pieces[0].size(0) : 0;
  if (!side_by_side)
    for (auto& piece : pieces) N += piece.size(0);
  Tensor y = result(x, N);
  switch (pieces[0].scalar_type()) {
    case torch::headeronly::ScalarType::Float: add_pieces<float>(x, pieces, side_by_side, y); break;
    case torch::headeronly::ScalarType::Half: add_pieces<_Float16>(x, pieces, side_by_side, y); break;
    default: add_pieces<uint16_t>(x, pieces, side_by_side, y);
  }
  return y;
}

// 4 bits: 32 neighbours of a row share a scale and an offset, bfloat16 one after the other. Byte j of the group's 16
// has neighbour j in its lower half and j + 16 in its upper one; weight = (code - 8) * scale + offset.
constexpr int64_t AHEAD = 3072;  // bytes of codes that are asked for before they are needed
constexpr int64_t GROUP = 32, HALF = GROUP / 2;


inline void load_group(const uint8_t* codes, int64_t part, Floats& lower, Floats& upper) {  // LANES codes of either half
  Codes both;
  load(codes + part * LANES, both);
#if defined(__AVX512F__)  // a table of sixteen numbers fits a register, and looks at four bits of an index
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  lower = Floats(_mm512_permutexvar_ps(__m512i(both), table)), upper = Floats(_mm512_permutexvar_ps(__m512i(both >> 4), table));
#else
  lower = __builtin_convertvector(both & 15, Floats), upper = __builtin_convertvector(both >> 4, Floats);
#endif
}

// The scales of up to LANES neighbouring groups, and what the code 0 stands for; zeros behind them.
struct Scales {
  alignas(WIDTH) float scale[LANES];
  Floats lowest;

  Scales(const uint16_t* pairs, int64_t n) {
    Bits bits = {};
#if defined(__AVX512F__)
    bits = Bits(_mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1), pairs));
#else
    if (n == LANES)
      std::memcpy(&bits, pairs, sizeof bits);
    else
      for (int64_t g = 0; g < n; g++) bits[g] = pairs[2 * g] | uint32_t(pairs[2 * g + 1]) << 16;
#endif
    Bits low = bits << 16, high = bits & 0xffff0000u;  // the first of two is the lower half: a little-endian machine
    Floats scales;
    std::memcpy(&scales, &low, sizeof low), std::memcpy(&lowest, &high, sizeof high);
    lowest -= 8 * scales;
    std::memcpy(scale, &scales, sizeof scales);
  }
};

// x @ matrix.T for fp32 x (..., K), codes (N, K / 2) and pairs (N, K / 32, 2).
Tensor matvec_int4(const Tensor& x, const Tensor& matrix, const Tensor& pairs) {
  int64_t N = matrix.size(0), K = x.size(-1), R = x.numel() / K, groups = K / GROUP;
  auto from = static_cast<const float*>(x.data_ptr());
  auto codes = static_cast<const uint8_t*>(matrix.data_ptr());
  auto pair = static_cast<const uint16_t*>(pairs.data_ptr());
  Tensor y = result(x, N);
  auto to = static_cast<float*>(y.data_ptr());
  int64_t padded = (groups + LANES - 1) / LANES * LANES;
  std::vector<float> of_group(R * padded);  // sums of x, for the offsets
  for (int64_t r = 0; r < R; r++)
    for (int64_t g = 0; g < groups; g++) {
      Floats sum = {}, x_now;
      for (int64_t k = 0; k < GROUP; k += LANES) load(from + r * K + g * GROUP + k, x_now), sum += x_now;
      of_group[r * padded + g] = total(sum);
    }
  const float* x_sums = of_group.data();
  each_row(N, K, [=](int64_t n) {
    by_vectors<8>(R, 0, [=](auto count, int64_t first) {
      const uint8_t* row = codes + n * K / 2;
      const uint16_t* row_pair = pair + 2 * n * groups;
      const float *vectors = from + first * K, *sums_of_x = x_sums + first * padded;
      Floats even[count] = {}, odd[count] = {}, lows[count] = {};
      auto add = [=](int64_t g, float scale, Floats(&sums)[count]) {
        Floats lower, upper, x_now, product;
        for (int64_t part = 0; part < HALF / LANES; part++) {
          load_group(row + g * HALF, part, lower, upper);
          for (int r = 0; r < count; r++) {
            const float* at = vectors + r * K + g * GROUP + part * LANES;
            load(at, x_now), product = lower * x_now;
            load(at + HALF, x_now), product += upper * x_now;
            sums[r] += product * scale;
          }
        }
      };
      for (int64_t start = 0; start < groups; start += LANES) {
        int64_t some = std::min(groups - start, LANES), g = 0;
        Scales scales(row_pair + 2 * start, some);
        for (int64_t line = 0; line < some * HALF; line += 64) __builtin_prefetch(row + start * HALF + line + AHEAD);
        for (; g + 2 <= some; g += 2) add(start + g, scales.scale[g], even), add(start + g + 1, scales.scale[g + 1], odd);
        if (g < some) add(start + g, scales.scale[g], even);
        for (int r = 0; r < count; r++) {
          Floats x_now;
          load(sums_of_x + r * padded + start, x_now);
          lows[r] += scales.lowest * x_now;
        }
      }
      for (int r = 0; r < count; r++) to[(first + r) * N + n] = total(even[r] + odd[r] + lows[r]);
    });
  });
  return y;
}

// The rows that are meant, (N, K) in float32.
Tensor unpack_int4(const Tensor& matrix, const Tensor& pairs) {
  int64_t N = matrix.size(0), K = 2 * matrix.size(1), groups = K / GROUP;
  Tensor y = torch::stable::new_empty(matrix, {N, K}, torch::headeronly::ScalarType::Float);
  auto codes = static_cast<const uint8_t*>(matrix.data_ptr());
  auto pair = static_cast<const uint16_t*>(pairs.data_ptr());
  auto to = static_cast<float*>(y.data_ptr());
  each_row(N, K, [=](int64_t n) {
    Floats lower, upper;
    for (int64_t g = 0; g < groups; g++) {
      float scale = number(pair[2 * (n * groups + g)]), lowest = number(pair[2 * (n * groups + g) + 1]) - 8 * scale;
      for (int64_t part = 0; part < HALF / LANES; part++) {
        load_group(codes + n * K / 2 + g * HALF, part, lower, upper);
        lower = lower * scale + lowest, upper = upper * scale + lowest;
        float* at = to + n * K + g * GROUP + part * LANES;
        std::memcpy(at, &lower, sizeof lower), std::memcpy(at + HALF, &upper, sizeof upper);
      }
    }
  });
  return y;
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
  library.def("matvec_int4(Tensor x, Tensor codes, Tensor pairs) -> Tensor");
  library.def("unpack_int4(Tensor codes, Tensor pairs) -> Tensor");
  library.def("matvec_pieces(Tensor x, Tensor[] pieces, bool side_by_side) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gptstar, CPU, library) {
  library.impl("matvec", TORCH_BOX(&matvec));
  library.impl("matvec_int8", TORCH_BOX(&matvec_int8));
  library.impl("matvec_int4", TORCH_BOX(&matvec_int4));
  library.impl("unpack_int4", TORCH_BOX(&unpack_int4));
  library.impl("matvec_pieces", TORCH_BOX(&matvec_pieces));
}
