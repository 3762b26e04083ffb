// Sixteen floats at a time: exponential and logarithm, rows of float and bfloat16.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
constexpr int BLOCK = 4096;  // Elements summed in float lanes before they go to a double.
constexpr float LOG_ZERO = -1e4f;
constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

struct bf16 {
  uint16_t bits;
};

inline vf splat(float x) { return vf{} + x; }
inline vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }
// These keep a NaN in x, so that a broken logit shows in the loss.
inline vf at_least(vf x, float low) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)splat(low), (__m512)x);  // Gives its second argument for a NaN.
#else
  return select(x < low, splat(low), x);
#endif
}
inline vf larger(vf best, vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)best, (__m512)x);
#else
  return select(x <= best, best, x);
#endif
}

inline float total(vf x) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += x[i];
  return sum;
}

// 2^x for finite x <= about 0, to 1e-7 relative; nothing, or nearly, below the smallest normal number.
inline vf exp2(vf x) {
#if defined(__AVX512F__)
  vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = at_least(x, -126.0f);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer.
  vf shifted = x + shift, n = shifted - shift;
#endif
  vf f = x - n;
  // Minimax on [-1/2, 1/2] with value 1 at 0: 2e-9 before rounding.
  vf p = splat(1.5353362e-4f);
  p = p * f + 1.3398874e-3f;
  p = p * f + 9.6184369e-3f;
  p = p * f + 5.5503324e-2f;
  p = p * f + 2.4022648e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * (vf)(((vi)shifted << 23) + (127 << 23));
#endif
}

inline vf exp_(vf x) { return exp2(x * LOG2_E); }

// ln x for normal positive x, to about 1e-7 absolute (Cephes' logf).
inline vf log_(vf x) {
  vi bits = (vi)x;
  vi e = ((bits - 0x3f3504f3) >> 23);
  vf m = (vf)(bits - (e << 23)) - 1.0f;
  vf ef = __builtin_convertvector(e, vf);
  vf z = m * m;
  vf y = splat(7.0376836292e-2f);
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  return ef * LN_2 + (m + z * (m * y - 0.5f));
}

// ---- loads and stores; beyond the end of a row everything is a token that cannot occur --------------------

template <class T> struct Row;

template <> struct Row<float> {
  static vf load(const float* p) {
    vf x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }
};

template <> struct Row<bf16> {
  static vf load(const bf16* p) {
    vh x;
    std::memcpy(&x, p, sizeof x);
    return (vf)(__builtin_convertvector(x, vu) << 16);
  }
  static void store(bf16* p, vf x) {
#if defined(__AVX512BF16__)
    __m256bh packed = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(p, &packed, sizeof packed);
#else
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding would carry some NaNs over into infinity.
    vu kept = (x == x) ? rounded : ((bits >> 16) | 0x40);
    vh halves = __builtin_convertvector(kept, vh);
    std::memcpy(p, &halves, sizeof halves);
#endif
  }
};

// `whole` is std::true_type for sixteen elements that are all within the row.
template <class T, class Whole> inline vf load(const T* row, int64_t i, int64_t V, Whole whole) {
  if constexpr (whole.value) return Row<T>::load(row + i);
  T padded[LANES];
  Row<T>::store(padded, splat(-std::numeric_limits<float>::infinity()));
  std::copy(row + i, row + V, padded);
  return Row<T>::load(padded);
}

template <class T, class Whole> inline void store(T* row, int64_t i, int64_t V, vf x, Whole whole) {
  if constexpr (whole.value) return Row<T>::store(row + i, x);
  T padded[LANES];
  Row<T>::store(padded, x);
  std::copy(padded, padded + (V - i), row + i);
}

template <class T> inline float scalar(const T* element) { return load(element, 0, 1, std::false_type{})[0]; }

// Calls body(i, whole) for every sixteen elements of [from, to).
template <class Body> inline void each(int64_t from, int64_t to, Body body) {
  int64_t i = from;
  for (; i + LANES <= to; i += LANES) body(i, std::true_type{});
  if (i < to) body(i, std::false_type{});
}

template <class Body> inline void in_blocks(int64_t V, Body body) {
  for (int64_t start = 0; start < V; start += BLOCK) body(start, std::min<int64_t>(start + BLOCK, V));
}

}  // namespace
