// A term whose target is a whole distribution: the teacher's row of logits.
#pragma once
#include <type_traits>
#include "terms.h"

namespace {

template <class S, class T> bool shared_top(const S* s, const T* t, int64_t V, float s_max, float t_max) {
  for (int64_t i = 0; i < V; i += LANES) {
    vi hit = (load(s, i, V) == s_max) & (load(t, i, V) == t_max);
    int any = 0;
    for (int k = 0; k < LANES; ++k) any |= hit[k];
    if (any) return true;
  }
  return false;
}

template <class S, class T, class D>
float dense_row(
    const S* s, const T* t, int64_t V, Normaliser ns, Normaliser nt, D divergence, float factor,
    bool gradient, float* scratch, const Sink& sink) {
  double d_sum = 0, w_sum = 0;
  constexpr bool forward = std::is_same_v<D, ForwardKL> || std::is_same_v<D, CrossEntropy>;
  in_blocks(V, [&](int64_t from, int64_t to) {
    vf d_block{}, w_block{};
    for (int64_t i = from; i < to; i += LANES) {
      vf lq = ns.log_softmax(load(s, i, V));
      vf lp = nt.log_softmax(load(t, i, V));
      vf p = exp_(lp), q = exp_(lq), share, weight;
      divergence(lp, lq, p, q, share, weight);
      d_block += share;
      if (forward) {
        // The weights -p add up to -1, so the gradient is at hand.
        if (gradient) sink.put(i, V, (q - p) * factor);
      } else {
        w_block += weight;
        if (gradient) Row<float>::store(scratch + i, weight);
      }
    }
    d_sum += total(d_block);
    w_sum += total(w_block);
  });
  if (!forward && gradient) {
    float w = static_cast<float>(w_sum);
    for (int64_t i = 0; i < V; i += LANES) {
      vf q = exp_(ns.log_softmax(load(s, i, V)));
      sink.put(i, V, (Row<float>::load(scratch + i) - q * w) * factor);
    }
  }
  return static_cast<float>(d_sum);
}

template <class S, class T>
void dense_term(
    const Chunk& chunk, const Term& term, int64_t n, const S* s, const T* t, float s_max, float* scratch,
    const Sink& sink) {
  float inverse = 1.0f / term.temperature, t_max = row_max(t, chunk.V);
  double zs = 0, xs = 0, zt = 0, xt = 0;
  sums(s, chunk.V, s_max, inverse, zs, xs);
  sums(t, chunk.V, t_max, inverse, zt, xt);
  Normaliser ns = normaliser(s_max, inverse, zs, xs), nt = normaliser(t_max, inverse, zt, xt);
  if (chunk.statistics) {
    term.student_entropy[n] = ns.entropy;
    term.teacher_entropy[n] = nt.entropy;
    term.agreement[n] = shared_top(s, t, chunk.V, s_max, t_max);
  }
  with_divergence(term, nt.entropy, [&](auto divergence) {
    term.divergence_out[n] = dense_row(
        s, t, chunk.V, ns, nt, divergence, term.coefficient[n] * inverse, chunk.gradient, scratch, sink);
  });
}

}  // namespace
