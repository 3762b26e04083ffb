// A term whose target is a few outcomes with known probabilities, and perhaps a bucket for the rest.
#pragma once
#include <vector>
#include "terms.h"

namespace {

// Takes the entries' logits out of a row, so that a pass sees only what is outside, and puts them back.
template <class S> struct Removed {
  S* s;
  const int64_t* ids;
  std::vector<S> kept;

  Removed(S* row, const int64_t* ids_, int64_t count) : s(row), ids(ids_), kept(count) {
    S nothing[LANES];
    Row<S>::store(nothing, splat(-std::numeric_limits<float>::infinity()));
    for (int64_t k = 0; k < count; ++k) {
      kept[k] = s[ids[k]];
      s[ids[k]] = nothing[0];
    }
  }
  // Backwards, so that an id that occurs twice gets its logit back and not the gap.
  ~Removed() {
    for (int64_t k = static_cast<int64_t>(kept.size()) - 1; k >= 0; --k) s[ids[k]] = kept[k];
  }
};

struct Tail {
  float max = -std::numeric_limits<float>::infinity();
  double lse = -std::numeric_limits<double>::infinity();
  double mean = 0;  // Of the scaled logits under the softmax of the tail.
};

template <class S> Tail tail_of(const S* s, int64_t V, float inverse) {
  Tail tail;
  tail.max = row_max(s, V, nullptr);
  if (tail.max == -std::numeric_limits<float>::infinity()) return tail;
  double z = 0, zx = 0;
  sums(s, V, tail.max, inverse, z, zx);
  tail.lse = static_cast<double>(tail.max) * inverse + std::log(z);
  tail.mean = static_cast<double>(tail.max) * inverse + zx / z;
  return tail;
}

// The row's entries, and the bucket as one more, padded with outcomes that neither side can have.
struct Lists {
  std::vector<float> memory;
  float *lp, *lq, *weight, *logit;

  void resize(int64_t padded) {
    memory.assign(4 * padded, LOG_ZERO);
    lp = memory.data(), lq = lp + padded, weight = lq + padded, logit = weight + padded;
  }
};

template <class S>
void sparse_term(const Chunk& chunk, const Term& term, int64_t n, S* s, Lists& lists, const Sink& sink) {
  const Sparse& sparse = term.sparse;
  const int64_t V = chunk.V, begin = sparse.offsets[n], count = sparse.offsets[n + 1] - begin;
  const int64_t* ids = sparse.ids + begin;
  const bool bucket = sparse.tail != nullptr;
  const float inverse = 1.0f / term.temperature;
  const int64_t padded = (count + bucket + LANES - 1) / LANES * LANES;
  lists.resize(padded);
  for (int64_t k = 0; k < count; ++k) {
    lists.lp[k] = sparse.logprobs[begin + k];
    lists.logit[k] = scalar(s + ids[k]);
  }

  // Normalisers: of the tail alone where it is an outcome, and of everything.
  Tail tail;
  float s_max;
  double lse, entropy;
  if (bucket) {
    {
      Removed<S> removed(s, ids, count);
      tail = tail_of(s, V, inverse);
    }
    s_max = tail.max;
    for (int64_t k = 0; k < count; ++k) s_max = std::max(s_max, lists.logit[k]);
    const double top = static_cast<double>(s_max) * inverse;
    double z = std::exp(tail.lse - top), zx = z > 0 ? z * (tail.mean - top) : 0;
    for (int64_t k = 0; k < count; ++k) {
      double x = std::max<double>(lists.logit[k] * static_cast<double>(inverse) - top, LOG_ZERO);
      z += std::exp(x);
      zx += std::exp(x) * x;
    }
    lse = top + std::log(z);
    entropy = std::log(z) - zx / z;
  } else {
    Tail all = tail_of(s, V, inverse);
    s_max = all.max;
    lse = all.lse;
    entropy = all.lse - all.mean;
  }
  for (int64_t k = 0; k < count; ++k) {
    float value = static_cast<float>(lists.logit[k] * static_cast<double>(inverse) - lse);
    lists.lq[k] = value < LOG_ZERO ? LOG_ZERO : value;
  }
  if (bucket) {
    float value = static_cast<float>(tail.lse - lse);
    lists.lp[count] = sparse.tail[n];
    lists.lq[count] = value < LOG_ZERO ? LOG_ZERO : value;
  }

  float d_sum = 0, w_sum = 0;
  with_divergence(term, term.entropy_in[n], [&](auto divergence) {
    vf d{}, w{};
    for (int64_t k = 0; k < padded; k += LANES) {
      vf lp = Row<float>::load(lists.lp + k), lq = Row<float>::load(lists.lq + k), share, weight;
      divergence(lp, lq, exp_(lp), exp_(lq), share, weight);
      d += share;
      w += weight;
      Row<float>::store(lists.weight + k, weight);
    }
    d_sum = total(d);
    w_sum = total(w);
  });
  // The normaliser is in every value, so what is broken outside the entries shows as well.
  term.divergence_out[n] = d_sum + (sparse.offset ? sparse.offset[n] : 0.0f) + (lse == lse ? 0.0f : lse);
  if (chunk.statistics) {
    term.student_entropy[n] = static_cast<float>(entropy);
    term.teacher_entropy[n] = term.entropy_in[n];
    const int64_t top = sparse.top[n];
    term.agreement[n] = top >= 0 && scalar(s + top) == s_max;
  }
  if (!chunk.gradient) return;

  // Everything feels the normalisation, or its part in the bucket, which the student's conditional
  // probabilities share out; then the entries get what is theirs.
  const float factor = term.coefficient[n] * inverse;
  const float outside = bucket ? lists.weight[count] - std::exp(lists.lq[count]) * w_sum : -w_sum;
  const float scale = outside * factor;
  // Of the tail, or of everything. An empty tail has nothing to share out; 1e30 sends its exponentials to 0.
  const bool empty = bucket && !(tail.max > -std::numeric_limits<float>::max());
  const float max = bucket ? (empty ? 0.0f : tail.max) : s_max;
  const double log_z = (bucket ? tail.lse : lse) - static_cast<double>(max) * inverse;
  const Normaliser norm{max, inverse, empty ? 1e30f : static_cast<float>(log_z), 0.0f};
  auto shared = [&](vf logit) {
    // The entries are in the row again and may stand out of the tail; they are corrected below.
    vf x = norm.log_softmax(logit);
    return exp_(select(x > 0.0f, vf{}, x)) * scale;
  };
  each(0, V, [&](int64_t i, auto whole) { sink.put(i, V, shared(load(s, i, V, whole)), whole); });
  for (int64_t k = 0; k < count; k += LANES) {
    vf base = shared(Row<float>::load(lists.logit + k));
    vf q = exp_(Row<float>::load(lists.lq + k)), weight = Row<float>::load(lists.weight + k);
    vf value = bucket ? (weight - q * w_sum) * factor : base + weight * factor;
    for (int64_t j = 0; j < LANES && k + j < count; ++j) sink.correct(ids[k + j], base[j], value[j]);
  }
}

}  // namespace
