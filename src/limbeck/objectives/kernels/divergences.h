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

struct AlphaBeta {
  float a, b;
  void operator()(vf lp, vf lq, vf, vf, vf& share, vf& weight) const {
    float both = a + b;
    vf p_both = exp_(both * lp), q_both = exp_(both * lq);
    if (b == 0) {
      share = (p_both * (a * (lp - lq)) - p_both + q_both) / (a * a);
      weight = (q_both - p_both) / a;
    } else if (a == 0) {
      weight = q_both * (lq - lp);
      share = (weight * b - q_both + p_both) / (b * b);
    } else {
      vf cross = exp_(a * lp + b * lq);
      share = (a / both * p_both + b / both * q_both - cross) / (a * b);
      weight = (q_both - cross) / a;
    }
  }
};

}  // namespace
