"""The Triton kernels: row statistics online, the divergence, and its gradient written in place.

A program takes a row (for the gradient: a block of a row). Logarithms and sums are in float32 whatever the
logits are. The numbers of the divergences are those of ``cpu.NUMBERS``; ``share_weight`` mirrors
``Divergence.pointwise`` and is the only place that knows them apart.

Shape suffixes: n positions of the chunk; V vocabulary.
"""

# mypy: disallow-untyped-defs=False
# Annotations must not be strings here: Triton reads them.
import triton
import triton.language as tl

LOG_ZERO = tl.constexpr(-1e4)
TINY = tl.constexpr(1.1754944e-38)


@triton.jit
def log_softmax(x, maximum, inverse, log_z):
    """The maximum goes first, so that a large one takes no digits with it."""
    return tl.maximum((x - maximum) * inverse - log_z, LOG_ZERO, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def growth(t, d, low, high):
    """(high - low) / t, where high = low * exp(t d): a series where it would cancel."""
    x = t * d
    series = 1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040 + x / 40320))))))
    far = (high - low) / tl.maximum(t, TINY)
    return tl.where(tl.abs(x) < 0.5, low * d * series, far)


@triton.jit
def alpha_beta(lp, lq, a, b):
    """As ``AlphaBeta.pointwise``; eight terms of the series are enough for float32."""
    both = a + b
    d = lp - lq
    x = both * d
    p_both = tl.exp(both * lp)
    q_both = tl.exp(both * lq)
    cross = tl.exp(a * lp + b * lq)
    grown = growth(a, d, q_both, cross)
    whole = (p_both - q_both) / both
    # Divided by the larger of the two, which is not near zero.
    of_b = (whole - grown) / tl.maximum(b, TINY)
    of_a = (-whole - growth(b, -d, p_both, cross)) / tl.maximum(a, TINY)
    far = tl.where(a <= b, of_b, of_a)
    r = a / both
    c1 = 1.0 + r
    c2 = 1.0 + r * c1
    c3 = 1.0 + r * c2
    c4 = 1.0 + r * c3
    c5 = 1.0 + r * c4
    c6 = 1.0 + r * c5
    c7 = 1.0 + r * c6
    series = c5 / 5040 + x * (c6 / 40320 + x * c7 / 362880)
    series = 1 / 2 + x * (c1 / 6 + x * (c2 / 24 + x * (c3 / 120 + x * (c4 / 720 + x * series))))
    share = tl.where(tl.abs(x) < 0.5, q_both * d * d * series, far)
    return share, -grown


@triton.jit
def share_weight(lp, lq, a, b, KIND: tl.constexpr):
    """The share of each outcome in the divergence, and q times the derivative by q."""
    p = tl.exp(lp)
    q = tl.exp(lq)
    if KIND == 0:  # forward KL
        return p * (lp - lq), -p
    elif KIND == 1:  # cross-entropy
        return -p * lq, -p
    elif KIND == 2:  # reverse KL
        share = q * (lq - lp)
        return share, share + q
    elif KIND == 3:  # JSD(beta = a)
        lm = tl.log(tl.maximum(a * p + (1 - a) * q, TINY))
        student = (1 - a) * q * (lq - lm)
        return a * p * (lp - lm) + student, student
    elif KIND == 4:  # skew KL(alpha = a)
        m = tl.maximum(a * p + (1 - a) * q, TINY)
        return p * (lp - tl.log(m)), (a - 1) * (p / m) * q
    elif KIND == 5:  # skew reverse KL(alpha = a)
        m = tl.maximum((1 - a) * p + a * q, TINY)
        share = q * (lq - tl.log(m))
        return share, share + q - a * q * (q / m)
    elif KIND == 6:  # alpha-beta
        return alpha_beta(lp, lq, a, b)
    else:  # total variation
        half = 0.5 * (q - p)
        sign = tl.where(half > 0, 0.5, tl.where(half < 0, -0.5, 0.0))
        return tl.abs(half), sign * q


@triton.jit
def row_stats(x_ptr, stride, V, inverse, max_ptr, log_z_ptr, entropy_ptr, BLOCK: tl.constexpr):
    """Maximum, logarithm of the normaliser and entropy of softmax(row / temperature), in one pass."""
    row = tl.program_id(0).to(tl.int64)
    maximum = float("-inf")
    z = 0.0
    zx = 0.0
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < V
        x = tl.load(x_ptr + row * stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(x, axis=0))
        # Nothing but -inf so far: any finite reference does, for all of it counts nothing.
        new = tl.where(larger == float("-inf"), 0.0, larger)
        old = tl.where(maximum == float("-inf"), new, maximum)
        moved = (old - new) * inverse
        scale = tl.exp(moved)
        y = tl.maximum((x - new) * inverse, LOG_ZERO, propagate_nan=tl.PropagateNan.ALL)
        e = tl.where(inside, tl.exp(y), 0.0)
        zx = (zx + z * moved) * scale + tl.sum(e * y, axis=0)
        z = z * scale + tl.sum(e, axis=0)
        maximum = larger
    log_z = tl.log(z)
    tl.store(max_ptr + row, maximum)
    tl.store(log_z_ptr + row, log_z)
    tl.store(entropy_ptr + row, log_z - zx / z)


@triton.jit
def dense_value(
    s_ptr, s_stride, t_ptr, t_stride, V, inverse,
    s_max_ptr, s_log_z_ptr, t_max_ptr, t_log_z_ptr, kind_ptr, a, b,
    divergence_ptr, weight_ptr, shared_ptr, KIND: tl.constexpr, OTHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The divergence of a row, the sum of its weights, and whether the two share a likeliest token.

    A row whose ``kind_ptr`` is not 0 takes OTHER in place of KIND (a switched divergence).
    """
    row = tl.program_id(0).to(tl.int64)
    s_max = tl.load(s_max_ptr + row)
    t_max = tl.load(t_max_ptr + row)
    s_log_z = tl.load(s_log_z_ptr + row)
    t_log_z = tl.load(t_log_z_ptr + row)
    other = tl.load(kind_ptr + row)
    divergence = 0.0
    weights = 0.0
    shared = 0
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < V
        s = tl.load(s_ptr + row * s_stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
        t = tl.load(t_ptr + row * t_stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
        lq = log_softmax(s, s_max, inverse, s_log_z)
        lp = log_softmax(t, t_max, inverse, t_log_z)
        share, weight = share_weight(lp, lq, a, b, KIND)
        if KIND != OTHER:
            share_other, weight_other = share_weight(lp, lq, a, b, OTHER)
            share = tl.where(other != 0, share_other, share)
            weight = tl.where(other != 0, weight_other, weight)
        divergence += tl.sum(tl.where(inside, share, 0.0), axis=0)
        weights += tl.sum(tl.where(inside, weight, 0.0), axis=0)
        shared += tl.sum((inside & (s == s_max) & (t == t_max)).to(tl.int32), axis=0)
    tl.store(divergence_ptr + row, divergence)
    tl.store(weight_ptr + row, weights)
    tl.store(shared_ptr + row, shared)


@triton.jit
def dense_gradient(
    s_ptr, s_stride, t_ptr, t_stride, V, inverse,
    s_max_ptr, s_log_z_ptr, t_max_ptr, t_log_z_ptr, kind_ptr, a, b, weight_ptr, factor_ptr,
    out_ptr, out_stride,
    KIND: tl.constexpr, OTHER: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``factor * (w - q * sum w)`` for one block of a row, into ``out`` (which may be the student's own)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < V
    other = tl.load(kind_ptr + row)
    s = tl.load(s_ptr + row * s_stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
    t = tl.load(t_ptr + row * t_stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
    lq = log_softmax(s, tl.load(s_max_ptr + row), inverse, tl.load(s_log_z_ptr + row))
    lp = log_softmax(t, tl.load(t_max_ptr + row), inverse, tl.load(t_log_z_ptr + row))
    _, weight = share_weight(lp, lq, a, b, KIND)
    if KIND != OTHER:
        _, weight_other = share_weight(lp, lq, a, b, OTHER)
        weight = tl.where(other != 0, weight_other, weight)
    gradient = (weight - tl.exp(lq) * tl.load(weight_ptr + row)) * tl.load(factor_ptr + row)
    out = out_ptr + row * out_stride + columns
    if ADD:
        gradient += tl.load(out, mask=inside, other=0.0).to(tl.float32)
    tl.store(out, gradient.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rest_gradient(
    s_ptr, s_stride, V, inverse, lse_ptr, factor_ptr, out_ptr, out_stride, ADD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """``factor * exp(logit / temperature - lse)`` for one block of a row: what is outside the entries."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < V
    s = tl.load(s_ptr + row * s_stride + columns, mask=inside, other=float("-inf")).to(tl.float32)
    # Entries may stand out of a tail that is normalised without them; they are replaced afterwards.
    x = tl.minimum(s * inverse - tl.load(lse_ptr + row), 0.0, propagate_nan=tl.PropagateNan.ALL)
    gradient = tl.exp(x) * tl.load(factor_ptr + row)
    out = out_ptr + row * out_stride + columns
    if ADD:
        gradient += tl.load(out, mask=inside, other=0.0).to(tl.float32)
    tl.store(out, gradient.to(out_ptr.dtype.element_ty), mask=inside)
