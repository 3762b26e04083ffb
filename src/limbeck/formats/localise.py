"""Where the weights of a model are: a GGUF file becomes a folder first."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from limbeck.errors import RecipeError, under
from limbeck.files import cache_folder, whole_folder
from limbeck.formats.gguf import inspect_gguf, load_gguf
from limbeck.formats.package import package_file
from limbeck.recipe import PackageModel, PathModel


def localised(spec: PathModel | PackageModel) -> tuple[PathModel, str | None]:
    """A model as a folder or hub name. A GGUF file, on disk or in an installed package, is
    de-quantised once into the user's cache, in float32.

    Returns:
        Where it is, and for a GGUF file a line that says how coarsely its weights were stored.

    Raises:
        RecipeError, InputError: the file is missing, torn, or of an architecture that is not proven.
    """
    if isinstance(spec, PackageModel):
        with under(".package"):
            file = package_file(spec.package)
    elif spec.path.lower().endswith(".gguf"):
        file = Path(spec.path).expanduser()
        if not file.is_file():
            raise RecipeError(f"there is no {spec.path}", key=".path", fix="Check the path")
    else:
        return spec, None
    inspect_gguf(file)  # also of a file that was read before: an older limbeck may have kept what lacks tensors
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    home = cache_folder() / "models" / f"{file.stem}-{digest}"
    facts = home / "gguf.json"
    if not facts.exists():
        read = load_gguf(file)
        with whole_folder(home, shared=True) as scratch:
            read.model.save_pretrained(scratch)
            read.tokenizer.save_pretrained(scratch)
            (scratch / facts.name).write_text(json.dumps(read.facts.line()))
    return PathModel(path=str(home), dtype=spec.dtype), json.loads(facts.read_text())
