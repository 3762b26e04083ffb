"""Run by test_triton.py in a process of its own: compiles a kernel for an H100 and prints the code's size in bytes.

python triton_compiles.py dense_value '{"KIND": 0, "OTHER": 0}'
"""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from limbeck.objectives.kernels import cuda
from limbeck.objectives.kernels import triton_kernels as kernels

LOGITS = ("s_ptr", "t_ptr", "x_ptr", "out_ptr")
INTEGERS = ("kind_ptr", "shared_ptr")
NUMBERS = ("inverse", "a", "b")
KERNELS: list[tuple[str, dict[str, int | bool]]] = [
    ("row_stats", {}),
    *[("dense_value", {"KIND": kind, "OTHER": other}) for kind, other in ((0, 2), (3, 3), (6, 6), (5, 5), (7, 7))],
    *[("dense_gradient", {"KIND": 3, "OTHER": 3, "ADD": add}) for add in (False, True)],
    ("rest_gradient", {"ADD": True}),
]


def kind_of(name: str) -> str:
    if name in LOGITS:
        return "*bf16"
    if name.endswith("_ptr"):
        return "*i32" if name in INTEGERS else "*fp32"
    return "fp32" if name in NUMBERS else "i32"


def compiled(name: str, settings: dict[str, int | bool]) -> bytes:
    kernel = getattr(kernels, name)
    constants = {**settings, "BLOCK": cuda.BLOCK}
    signature = {arg: "constexpr" if arg in constants else kind_of(arg) for arg in kernel.arg_names}
    places = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": cuda.WARPS})
    return made.asm["cubin"]


if __name__ == "__main__":
    json.dump([len(compiled(name, settings)) for name, settings in KERNELS], sys.stdout)
