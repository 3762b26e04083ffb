// What Python hands over, where a gradient goes, and the passes that every term begins with.
#pragma once
#include <cmath>
#include "divergences.h"

namespace {

extern "C" {

struct Dense {
  const void* logits;
  int64_t stride;  // Elements from one row to the next.
  int32_t is_bf16;
  float softcap;  // 0: none.
};

struct Sparse {
  const int64_t* offsets;
  const int64_t* ids;
  const float* logprobs;
  const float* tail;    // NULL: nothing outside the entries takes part.
  const float* offset;  // NULL: nothing to add to the divergence.
  const int64_t* top;
};

struct Term {
  int32_t is_sparse, divergence;  // The divergence's number in cpu.py.
  float first, second;            // Its settings.
  float temperature;
  const float* coefficient;
  const float* entropy_in;  // The teacher's entropy, where it is known beforehand (sparse).
  float *divergence_out, *student_entropy, *teacher_entropy;
  uint8_t* agreement;
  Dense dense;
  Sparse sparse;
};

struct Chunk {
  void* logits;  // The student's; the gradient is written over them.
  int64_t rows, V, stride;
  int32_t logits_bf16, gradient_bf16;  // A bfloat16 gradient over float32 logits fills the first half.
  int32_t gradient, statistics;
  float softcap;  // 0: none.
  int32_t terms;
  const Term* term;
  int32_t threads;
};
}

template <class Do> void with_divergence(const Term& term, float entropy, Do run) {
  switch (term.divergence) {
    case 0: return run(ForwardKL{});
    case 1: return run(CrossEntropy{});
    case 2: return run(ReverseKL{});
    case 3: return run(JSD{term.first});
    case 4: return run(SkewKL{term.first});
    case 5: return run(SkewReverseKL{term.first});
    case 6: return run(AlphaBeta{term.first, term.second});
    case 7: return run(TVD{});
    case 8: return entropy > term.first ? run(ForwardKL{}) : run(ReverseKL{});
  }
}

// ---- where a term's gradient goes -------------------------------------------------------------------------

// Several terms are summed in `sum` before the row is overwritten.
struct Sink {
  void* out;
  float* sum;  // NULL for a single term.
  bool out_bf16, first, last;
  const float* capped;  // The student's capped logits, or NULL.
  float softcap;

  template <class Whole> inline void put(int64_t i, int64_t V, vf g, Whole whole) const {
    if (sum) {
      if (!first) g += load(sum, i, V, whole);
      if (!last) return store(sum, i, V, g, whole);
    }
    write(i, V, g, whole);
  }

  template <class Whole> inline void write(int64_t i, int64_t V, vf g, Whole whole) const {
    if (capped) {
      vf tanh = load(capped, i, V, whole) / softcap;
      g *= 1.0f - tanh * tanh;
    }
    if (out_bf16)
      store(static_cast<bf16*>(out), i, V, g, whole);
    else
      store(static_cast<float*>(out), i, V, g, whole);
  }

  // One element that `put` has given `base` ought to have `value`.
  inline void correct(int64_t i, float base, float value) const {
    if (sum) {
      sum[i] += value - base;
      return;
    }
    if (capped) {
      float tanh = capped[i] / softcap;
      value *= 1.0f - tanh * tanh;
    }
    if (out_bf16)
      store(static_cast<bf16*>(out) + i, 0, 1, splat(value), std::false_type{});
    else
      static_cast<float*>(out)[i] = value;
  }
};

// The largest of a row, and in `of_block`, unless NULL, of each block of it.
template <class T> float row_max(const T* row, int64_t V, float* of_block) {
  float best = -std::numeric_limits<float>::infinity();
  in_blocks(V, [&](int64_t from, int64_t to) {
    vf a = splat(-std::numeric_limits<float>::infinity()), b = a;
    int64_t i = from;
    for (; i + 2 * LANES <= to; i += 2 * LANES) {
      a = larger(a, Row<T>::load(row + i));
      b = larger(b, Row<T>::load(row + i + LANES));
    }
    each(i, to, [&](int64_t j, auto whole) { a = larger(a, load(row, j, V, whole)); });
    a = larger(a, b);
    float block = a[0];
    for (int k = 1; k < LANES; ++k) block = a[k] <= block ? block : a[k];
    if (of_block) of_block[from / BLOCK] = block;
    best = block <= best ? best : block;
  });
  return best;
}

// log softmax(row / temperature), without losing the digits that a large maximum would take: the maximum
// goes first, and what is left to subtract is small.
struct Normaliser {
  float max, inverse, log_z;
  float entropy;  // Of the softmax.
  float inverse_z = 0;  // Of exponentials of what is left after the maximum.

  inline vf log_softmax(vf logit) const { return at_least((logit - max) * inverse - log_z, LOG_ZERO); }
};

// sum e and sum e * x for e = exp(x), x = (row - max) / temperature. With KEEP, e is written to `kept`.
template <bool KEEP = false, class T>
void sums(const T* row, int64_t V, float max, float inverse, double& z, double& zx, float* kept = nullptr) {
  const float slope = inverse * LOG2_E;
  in_blocks(V, [&](int64_t from, int64_t to) {
    vf e_sum{}, ex_sum{};
    each(from, to, [&](int64_t i, auto whole) {
      vf y = at_least((load(row, i, V, whole) - max) * slope, LOG_ZERO);
      vf e = exp2(y);
      e_sum += e;
      ex_sum += e * y;
      if (KEEP) Row<float>::store(kept + i, e);
    });
    z += total(e_sum);
    zx += total(ex_sum) * static_cast<double>(LN_2);
  });
}

inline Normaliser normaliser(float max, float inverse, double z, double zx) {
  double log_z = std::log(z);
  return {max, inverse, static_cast<float>(log_z), static_cast<float>(log_z - zx / z), static_cast<float>(1 / z)};
}

}  // namespace
