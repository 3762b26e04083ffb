"""Documents out of Python's own library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from limbeck.data.documents.document import Document
from limbeck.data.reading.files.folders import library_files


def of_stdlib(what: Literal["docstrings", "sources", "questions"]) -> Iterator[Document]:
    """Docstrings, whole sources, or questions and answers, of this Python's library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in library_files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # a few files carry other encodings on purpose
            continue
        if what == "sources":
            if text.strip():
                yield Document(text=text)
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        yield from (_docstrings(tree) if what == "docstrings" else _questions(tree, module))


def _docstrings(tree: ast.Module) -> Iterator[Document]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc and len(doc) >= 40:
                yield Document(text=doc)


def _questions(node: ast.AST, name: str) -> Iterator[Document]:
    """What a public name is or does, and the first paragraph of its docstring as the answer."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        doc = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if len(doc) >= 20 and doc[0].isupper():
            match node:
                case ast.Module():
                    question = f"What is the Python module `{name}` for?"
                case ast.ClassDef():
                    question = f"What is `{name}` in Python?"
                case _:
                    question = f"What does `{name}` do in Python?"
            yield Document(messages=({"role": "user", "content": question}, {"role": "assistant", "content": doc}))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in node.body:
                called = getattr(child, "name", "_")
                if not called.startswith("_"):
                    yield from _questions(child, f"{name}.{called}")
