"""Distances between hidden states: what a student may learn from inside its teacher.

Shape suffixes: N positions; D width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

HiddenDistance = Literal["cosine", "mse"]


def hidden_distance(student_ND: Tensor, teacher_ND: Tensor, kind: HiddenDistance) -> Tensor:
    """A distance a position, float32 [N]; gradients flow to the student only.

    ``cosine``: one less the cosine of the angle between the two (DistilBERT, arXiv 1910.01108,
    section 3). ``mse``: the mean over the width of the squared difference (TinyBERT, arXiv
    1909.10351, equation 8); it depends on the scale of the teacher's states, which grow with depth.

    Args:
        student_ND: [N, D], projected to the teacher's width where widths differ.
        teacher_ND: [N, D].
    """
    student, teacher = student_ND.float(), teacher_ND.detach().float()
    if kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().mean(-1)
