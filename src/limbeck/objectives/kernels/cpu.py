"""The pointwise work over a chunk on CPUs, in C++ (``rows.cpp``): float32 and bfloat16 logits.

Shape suffixes: n positions of the chunk; V vocabulary.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.objectives import divergences as d
from limbeck.objectives.kernels import build
from limbeck.objectives.kernels.rows import DenseRows, RowResult, RowTerm, SparseRows

NUMBERS: Mapping[type[d.Divergence], int] = {
    d.ForwardKL: 0,
    d.CrossEntropy: 1,
    d.ReverseKL: 2,
    d.JSD: 3,
    d.SkewKL: 4,
    d.SkewReverseKL: 5,
    d.AlphaBeta: 6,
    d.TVD: 7,
    d.EntropySwitched: 8,
}
"""The divergences as ``with_divergence`` in ``terms.h`` numbers them."""

_Pointer = ctypes.c_void_p


class _Dense(ctypes.Structure):
    _fields_ = [
        ("logits", _Pointer),
        ("stride", ctypes.c_int64),
        ("is_bf16", ctypes.c_int32),
        ("softcap", ctypes.c_float),
    ]


class _Sparse(ctypes.Structure):
    _fields_ = [(name, _Pointer) for name in ("offsets", "ids", "logprobs", "tail", "offset", "top")]


class _Term(ctypes.Structure):
    _fields_ = [
        ("is_sparse", ctypes.c_int32),
        ("divergence", ctypes.c_int32),
        ("first", ctypes.c_float),
        ("second", ctypes.c_float),
        ("temperature", ctypes.c_float),
        *[
            (name, _Pointer)
            for name in (
                "coefficient", "entropy_in",
                "divergence_out", "student_entropy", "teacher_entropy", "agreement",
            )
        ],
        ("dense", _Dense),
        ("sparse", _Sparse),
    ]  # fmt: skip


class _Chunk(ctypes.Structure):
    _fields_ = [
        ("logits", _Pointer),
        ("rows", ctypes.c_int64),
        ("V", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("logits_bf16", ctypes.c_int32),
        ("gradient_bf16", ctypes.c_int32),
        ("gradient", ctypes.c_int32),
        ("statistics", ctypes.c_int32),
        ("softcap", ctypes.c_float),
        ("terms", ctypes.c_int32),
        ("term", ctypes.POINTER(_Term)),
        ("threads", ctypes.c_int32),
    ]


def serves(logits: torch.dtype, gradient: torch.dtype | None) -> bool:
    """Whether the kernel knows these types, is not switched off, and can be had."""
    known = (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
    )
    return (
        any(logits == have and gradient in (None, wanted) for have, wanted in known)
        and not build.disabled()
        and build.library() is not None
    )


def run(
    logits_nV: Tensor,
    terms: Sequence[RowTerm],
    softcap: float | None,
    gradient: torch.dtype | None,
    statistics: bool,
) -> tuple[list[RowResult], Tensor | None]:
    """The C++ backend; see :mod:`limbeck.objectives.kernels.rows`."""
    library = build.library()
    assert library is not None
    results = [_empty_result(len(logits_nV), statistics) for _ in terms]
    # Sparse terms first: a dense one at the end writes the row's gradient without another pass.
    order = sorted(range(len(terms)), key=lambda i: isinstance(terms[i].rows, DenseRows))
    alive: list[Tensor] = []
    structures = (_Term * len(terms))(*[_structure(terms[i], results[i], alive) for i in order])
    chunk = _Chunk(
        logits=logits_nV.data_ptr(),
        rows=len(logits_nV),
        V=logits_nV.shape[1],
        stride=logits_nV.stride(0),
        logits_bf16=logits_nV.dtype == torch.bfloat16,
        gradient_bf16=gradient == torch.bfloat16,
        gradient=gradient is not None,
        statistics=statistics,
        softcap=softcap or 0.0,
        terms=len(terms),
        term=structures,
        threads=min(torch.get_num_threads(), max(1, len(logits_nV))),
    )
    library.limbeck_rows(ctypes.byref(chunk))
    if gradient is None:
        return results, None
    # A row in bfloat16 fills the first half of its float32 logits.
    return results, logits_nV.view(gradient)[:, : logits_nV.shape[1]]


def _empty_result(rows: int, statistics: bool) -> RowResult:
    if not statistics:
        return RowResult(torch.empty(rows))
    agreement_n = torch.empty(rows, dtype=torch.bool)
    return RowResult(torch.empty(rows), torch.empty(rows), torch.empty(rows), agreement_n)


def _structure(term: RowTerm, result: RowResult, alive: list[Tensor]) -> _Term:
    def pointer(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        alive.append(tensor)
        return tensor.data_ptr()

    rows = term.rows
    settings = [getattr(term.divergence, field.name) for field in dataclasses.fields(term.divergence)]
    first, second, *_ = [*settings, 0.0, 0.0]
    made = _Term(
        is_sparse=isinstance(rows, SparseRows),
        divergence=NUMBERS[type(term.divergence)],
        first=first,
        second=second,
        temperature=term.temperature,
        coefficient=pointer(term.coefficient_n.float()),
        divergence_out=pointer(result.divergence_n),
        student_entropy=pointer(result.student_entropy_n),
        teacher_entropy=pointer(result.teacher_entropy_n),
        agreement=pointer(result.agreement_n),
    )
    if isinstance(rows, SparseRows):
        made.entropy_in = pointer(rows.entropy_n)
        made.sparse = _Sparse(
            offsets=pointer(rows.offsets_m),
            ids=pointer(rows.ids_r),
            logprobs=pointer(rows.logprobs_r),
            tail=pointer(rows.tail_n),
            offset=pointer(rows.offset_n),
            top=pointer(rows.top_n),
        )
        return made
    teacher_nV = rows.logits_nV
    if teacher_nV.dtype not in (torch.float32, torch.bfloat16):
        teacher_nV = teacher_nV.float()
    if teacher_nV.stride(1) != 1:
        teacher_nV = teacher_nV.contiguous()
    alive.append(teacher_nV)
    made.dense = _Dense(
        logits=teacher_nV.data_ptr(),
        stride=teacher_nV.stride(0),
        is_bf16=teacher_nV.dtype == torch.bfloat16,
        softcap=rows.softcap or 0.0,
    )
    return made
