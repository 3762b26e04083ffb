// A term whose target is a whole distribution: the teacher's row of logits.
#pragma once
#include <type_traits>
#include "terms.h"

namespace {

struct Maxima {
  float row;
  const float* of_block;
};

// Only a block that holds both maxima is looked into: usually one, or none.
template <class S, class T> bool shared_top(const S* s, const T* t, int64_t V, Maxima of_s, Maxima of_t) {
  vi hits{};
  in_blocks(V, [&](int64_t from, int64_t to) {
    if (of_s.of_block[from / BLOCK] != of_s.row || of_t.of_block[from / BLOCK] != of_t.row) return;
    each(from, to, [&](int64_t i, auto whole) {
      hits |= (load(s, i, V, whole) == of_s.row) & (load(t, i, V, whole) == of_t.row);
    });
  });
  return total(select(hits != 0, splat(1.0f), vf{})) > 0;
}

// Two rows of floats: the exponentials of student and teacher from the pass that summed them. Loading them
// again costs less than making them again.
struct Exponentials {
  float *student, *teacher;
};

template <class S, class T, class D>
float dense_row(
    const S* s, const T* t, int64_t V, Normaliser ns, Normaliser nt, D divergence, float factor,
    bool gradient, Exponentials kept, const Sink sink) {
  double d_sum = 0, w_sum = 0;
  constexpr bool forward = std::is_same_v<D, ForwardKL> || std::is_same_v<D, CrossEntropy>;
  float* weights = kept.teacher;  // Overwritten, each place after it was read.
  in_blocks(V, [&](int64_t from, int64_t to) {
    vf d_block{}, w_block{};
    each(from, to, [&](int64_t i, auto whole) {
      vf lq = ns.log_softmax(load(s, i, V, whole));
      vf lp = nt.log_softmax(load(t, i, V, whole));
      vf p = Row<float>::load(kept.teacher + i) * nt.inverse_z;
      vf q = Row<float>::load(kept.student + i) * ns.inverse_z;
      vf share, weight;
      divergence(lp, lq, p, q, share, weight);
      d_block += share;
      if (forward) {
        // The weights -p add up to -1, so the gradient is at hand.
        if (gradient) sink.put(i, V, (q - p) * factor, whole);
      } else {
        w_block += weight;
        if (gradient) Row<float>::store(weights + i, weight);
      }
    });
    d_sum += total(d_block);
    w_sum += total(w_block);
  });
  if (!forward && gradient) {
    float w = static_cast<float>(w_sum);
    each(0, V, [&](int64_t i, auto whole) {
      vf q = Row<float>::load(kept.student + i) * ns.inverse_z;
      sink.put(i, V, (Row<float>::load(weights + i) - q * w) * factor, whole);
    });
  }
  return static_cast<float>(d_sum);
}

template <class S, class T>
void dense_term(
    const Chunk& chunk, const Term& term, int64_t n, const S* s, const T* t, Maxima of_s, float* t_blocks,
    Exponentials kept, const Sink& sink) {
  const float inverse = 1.0f / term.temperature;
  const Maxima of_t{row_max(t, chunk.V, t_blocks), t_blocks};
  double zs = 0, xs = 0, zt = 0, xt = 0;
  sums<true>(s, chunk.V, of_s.row, inverse, zs, xs, kept.student);
  sums<true>(t, chunk.V, of_t.row, inverse, zt, xt, kept.teacher);
  Normaliser ns = normaliser(of_s.row, inverse, zs, xs), nt = normaliser(of_t.row, inverse, zt, xt);
  if (chunk.statistics) {
    term.student_entropy[n] = ns.entropy;
    term.teacher_entropy[n] = nt.entropy;
    term.agreement[n] = shared_top(s, t, chunk.V, of_s, of_t);
  }
  with_divergence(term, nt.entropy, [&](auto divergence) {
    term.divergence_out[n] = dense_row(
        s, t, chunk.V, ns, nt, divergence, term.coefficient[n] * inverse, chunk.gradient, kept, sink);
  });
}

}  // namespace
