// The divergences, outcome by outcome: `share` of the divergence, and `weight`, q times the derivative by q.
// The equations and papers are in objectives/divergences.py, whose classes these mirror.
#pragma once
#include "vectors.h"

namespace {

// Where both are nothing it stays a normal number: it is divided by, and its logarithm taken.
inline vf mixture(vf p, vf q, float share_of_p) {
  return at_least(share_of_p * p + (1 - share_of_p) * q, 1.1754944e-38f);
}

struct ForwardKL {
  void operator()(vf lp, vf lq, vf p, vf, vf& share, vf& weight) const {
    share = p * (lp - lq);
    weight = -p;
  }
};

struct CrossEntropy {
  void operator()(vf, vf lq, vf p, vf, vf& share, vf& weight) const {
    share = -p * lq;
    weight = -p;
  }
};

struct ReverseKL {
  void operator()(vf lp, vf lq, vf, vf q, vf& share, vf& weight) const {
    share = q * (lq - lp);
    weight = share + q;
  }
};

struct JSD {
  float beta;
  void operator()(vf lp, vf lq, vf p, vf q, vf& share, vf& weight) const {
    vf lm = log_(mixture(p, q, beta));
    weight = (1 - beta) * q * (lq - lm);
    share = beta * p * (lp - lm) + weight;
  }
};

struct SkewKL {
  float alpha;
  void operator()(vf lp, vf, vf p, vf q, vf& share, vf& weight) const {
    vf m = mixture(p, q, alpha);
    share = p * (lp - log_(m));
    weight = (alpha - 1) * (p / m) * q;
  }
};

struct SkewReverseKL {
  float alpha;
  void operator()(vf, vf lq, vf p, vf q, vf& share, vf& weight) const {
    vf m = mixture(p, q, 1 - alpha);
    share = q * (lq - log_(m));
    weight = share + q - alpha * q * (q / m);
  }
};

struct TVD {
  void operator()(vf, vf, vf p, vf q, vf& share, vf& weight) const {
    vf half = 0.5f * (q - p);
    share = select(half < 0.0f, -half, half);
    vf signed_q = select(half < 0.0f, -0.5f * q, 0.5f * q);
    weight = select(half == 0.0f, vf{}, signed_q);
  }
};

// With d = log(p/q), s = a + b: share = q^s [(e^(sd) - 1)/s - (e^(ad) - 1)/a] / b, weight = -q^s (e^(ad) - 1)/a.
// Where an exponent is small, the differences would cancel: there they are summed as series.
struct AlphaBeta {
  static constexpr float NEAR = 0.5f;
  static constexpr int TERMS = 8;
  float a, b, series[TERMS];
  AlphaBeta(float alpha, float beta) : a(alpha), b(beta) {
    const float ratio = a / (a + b);
    float powers = 0, factorial = 1;
    for (int n = 0; n < TERMS; ++n) {
      powers = powers * ratio + 1;
      factorial *= n + 2;
      series[n] = powers / factorial;
    }
  }
  // (high - low) / t, where high = low e^(td).
  static vf growth(float t, vf d, vf low, vf high) {
    vf x = t * d, sum = splat(1.0f / 40320);
    sum = sum * x + 1.0f / 5040;
    sum = sum * x + 1.0f / 720;
    sum = sum * x + 1.0f / 120;
    sum = sum * x + 1.0f / 24;
    sum = sum * x + 1.0f / 6;
    sum = sum * x + 0.5f;
    vf near = low * d * (sum * x + 1.0f);
    if (t == 0) return near;
    return select(inside(x), near, (high - low) / t);
  }
  static vi inside(vf x) { return (x < NEAR) & (x > -NEAR); }
  void operator()(vf lp, vf lq, vf, vf, vf& share, vf& weight) const {
    const float both = a + b;
    vf d = lp - lq, x = both * d;
    vf p_both = exp_(both * lp), q_both = exp_(both * lq), cross = exp_(a * lp + b * lq);
    vf grown = growth(a, d, q_both, cross), whole = (p_both - q_both) / both;
    vf far = a <= b ? (whole - grown) / b : (-whole - growth(b, -d, p_both, cross)) / a;
    vf sum = splat(series[TERMS - 1]);
    for (int n = TERMS - 2; n >= 0; --n) sum = sum * x + series[n];
    share = select(inside(x), q_both * d * d * sum, far);
    weight = -grown;
  }
};

}  // namespace
