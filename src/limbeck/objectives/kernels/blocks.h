// Exponentials of rows of logits, added up in blocks of tokens: what a sampler needs to know of all tokens.
#pragma once
#include "terms.h"

namespace {

extern "C" {

struct Blocks {
  const void* logits;
  int64_t rows, V, stride;
  int32_t is_bf16, threads;
  int64_t width;  // Of a block, a multiple of LANES.
  float inverse;  // Of the temperature.
  float* max;     // [rows]
  float* sums;    // [rows, blocks]
  double* moment; // [rows]: sum of exp(x) * x, x = (logit - max) / temperature.
};
}

inline float total_tree(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  return total(x);
#endif
}

template <class S> void blocks_of_row(const Blocks& given, int64_t n) {
  const S* row = static_cast<const S*>(given.logits) + n * given.stride;
  const int64_t V = given.V, width = given.width, blocks = (V + width - 1) / width;
  const float max = row_max(row, V, nullptr), slope = given.inverse * LOG2_E;
  float* sums = given.sums + n * blocks;
  double moment = 0;
  in_blocks(V, [&](int64_t from, int64_t to) {
    vf ex_sum{};
    for (int64_t start = from; start < to; start += width) {
      vf e_sum{};
      each(start, std::min(start + width, to), [&](int64_t i, auto whole) {
        vf y = at_least((load(row, i, V, whole) - max) * slope, LOG_ZERO);
        vf e = exp2(y);
        e_sum += e;
        ex_sum += e * y;
      });
      sums[start / width] = total_tree(e_sum);
    }
    moment += total(ex_sum) * static_cast<double>(LN_2);
  });
  given.max[n] = max;
  given.moment[n] = moment;
}

}  // namespace
