"""Reading a recipe file: YAML without its traps, overrides, and errors in one line.

PyYAML follows YAML 1.1, where ``1e-3`` is a string and a key may stand twice; here ``1e-3`` is a
number and the second key an error.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from limbeck.errors import RecipeError, counted


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str | int | float | bool):
            raise RecipeError(f"line {line}: {_short(key)} is no key", fix="Keys are plain words")
        if key in seen:
            raise RecipeError(f"line {line}: the key stands twice", key=str(key), fix="Remove one of the two")
        seen.add(key)
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain data only


def read_yaml(path: Path) -> Any:
    """The plain data of a recipe file. Raises RecipeError for a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}", fix=_near_file(path)) from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder", fix="Name the recipe file in it") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text", fix="Save the recipe as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror})", fix="Check its permissions") from None
    try:
        raw = parse_yaml(text)
    except RecursionError:
        raise RecipeError(f"{path} is nested too deep", fix="See recipes/ for examples") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(
            f"{path}{where} is not YAML ({getattr(error, 'problem', None) or 'unreadable'})",
            fix="Check the indentation, and quote strings that hold `: ` or `#`",
        ) from None
    if raw is None:
        raise RecipeError(f"{path} is empty", fix="See recipes/ for examples")
    return raw


def _near_file(path: Path) -> str:
    siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, 1)
    return f"Did you mean {path.parent / near[0]}?" if near else "Check the path"


def apply_overrides(raw: Any, overrides: list[str] | tuple[str, ...]) -> Any:
    """Set ``a.b.0.c=value`` (value in YAML) in plain data; intermediate sections are made."""
    if overrides and not isinstance(raw, dict):
        raise RecipeError("a recipe is a mapping of keys to values", fix="See recipes/ for examples")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is no override", fix="Write key.path=value, for example training.lr=3e-4")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            raise RecipeError(f"{text!r} is not a YAML value", key=key, fix="Quote it") from None
        _set(raw, key.split("."), value, key)
    return raw


def _set(node: Any, steps: list[str], value: Any, key: str) -> None:
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(node, list):
            if not step.isdigit() or int(step) >= len(node):
                raise RecipeError(
                    f"{'.'.join(steps[:position])} is a list of {len(node)}", key=key, fix="Write an index from 0"
                )
            index: Any = int(step)
        elif isinstance(node, dict):
            index = step
            if not last and node.get(step) is None:
                node[step] = {}
        else:
            raise RecipeError(
                f"{'.'.join(steps[:position])} is the value {node!r}, not a section", key=key, fix="Check the path"
            )
        if last:
            node[index] = value
        else:
            node = node[index]


# --------------------------------------------------------------------------- errors in one line


def explain(error: ValidationError, root: type[BaseModel]) -> RecipeError:
    """The first thing that is wrong, as one line that names the key and what to write."""
    problems = error.errors(include_url=False)
    # A key that does not exist explains more than the required one it leaves missing, and what a section says of
    # itself more than that it is no number either: where a key takes several kinds, of them all only one was meant.
    rank = {"extra_forbidden": 0, "value_error": 1, "literal_error": 4}

    def worth(problem: Any) -> int:
        if problem["type"] == "too_short" and problem["input"]:
            return 5  # too short without the items that are wrong
        return rank.get(problem["type"], 3 if problem["type"].endswith("_type") else 2)

    problem = min(problems, key=worth)
    keys, section = _walk(root, problem["loc"])
    dotted = ".".join(keys) or None
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted(_fields(section)) if section else []
        near = difflib.get_close_matches(keys[-1], known, 1, cutoff=0.5)
        fix = f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(known)}"
        return RecipeError("unknown key", key=dotted, fix=fix)
    if kind == "missing":
        field = _fields(section).get(keys[-1]) if section else None
        hint = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
        return RecipeError("is missing", key=dotted, fix=f"Write it{hint}")
    if kind == "union_tag_invalid":
        known = [name.strip("' ") for name in str(context.get("expected_tags", "")).split(",")]
        tag = str(context.get("tag"))
        near = difflib.get_close_matches(tag, known, 1, cutoff=0.5)
        fix = f"Did you mean `{near[0]}`?" if near else f"Write one of {', '.join(known)}"
        return RecipeError(f"there is no `{tag}`", key=dotted, fix=fix)
    if kind == "union_tag_not_found":
        if "discriminator" in context and context["discriminator"].startswith("'"):
            return RecipeError(
                "says not which it is", key=dotted, fix=f"Write `{context['discriminator'].strip(chr(39))}:`"
            )
        options = _tags(root, problem["loc"])
        value = problem["input"]
        given = ", ".join(sorted(map(str, value))) if isinstance(value, dict) else _short(value)
        fix = f"Write exactly one of {', '.join(options)}"
        if isinstance(value, str) and "path" in options:
            fix += f"; for a folder or a hub name `{dotted}.path={value}`"
        elif dotted == "student" and isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
            fix += "; several students stand under `students:`" if value else ""
        return RecipeError(f"got {given or 'nothing'}", key=dotted, fix=fix)
    if kind == "model_type" and section is not None and keys[-1] in _fields(section):
        members = [model for _, model in _members(_fields(section)[keys[-1]].annotation)]
        wanted = next(model for model in members if model.__name__ == context["class_name"])
        needed = [f"{name}: ..." for name, field in _fields(wanted).items() if field.is_required()]
        fix = f"Write `{keys[-1]}: {{{', '.join(needed)}}}` (it knows {', '.join(_fields(wanted))})"
        return RecipeError(f"got {_short(problem['input'])}, which is no section", key=dotted, fix=fix)
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list").replace("Tuple", "List")
    if kind == "value_error":
        return RecipeError(message[0].lower() + message[1:] if not message.isupper() else message, key=dotted)
    return RecipeError(f"got {_short(problem['input'])}", key=dotted, fix=_wanted(kind, context) or message)


def _wanted(kind: str, context: dict[str, Any]) -> str | None:
    """What to write instead of a value of the wrong kind, in our words; None: pydantic's are good."""
    if kind == "too_short":
        return f"Write at least {counted(context['min_length'], 'item')}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        than = f"{kind.replace('_than', ' than').replace('_equal', ' or equal to')} {next(iter(context.values()))}"
        return f"Write a number {than}"
    for beginning, said in _KINDS.items():
        if kind.startswith(beginning):
            return said
    return None


_KINDS = {
    "int_": "Write a whole number",
    "float_": "Write a number",
    "bool_": "Write true or false",
    "tuple_": "Write a list: [..., ...]",
    "list_": "Write a list: [..., ...]",
    "dict_": "Write a section of names and values: {name: ...}",
    "string_type": "Write text",
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Its fields by the names a recipe uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _members(annotation: Any) -> list[tuple[str | None, type[BaseModel]]]:
    """The models an annotation may hold, each with its union tag (None: untagged)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return [(kind.default if kind is not None else None, annotation)]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        tags = [m.tag for m in args[1:] if hasattr(m, "tag")]
        return [(tags[0] if tags else tag, model) for tag, model in _members(args[0])]
    if origin in (typing.Union, types.UnionType, tuple, list):
        return [member for arg in args for member in _members(arg)]
    if origin is dict:
        return _members(args[1])
    return []


def _walk(root: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """Keys as the user wrote them (without pydantic's union tags) and the section of the last one."""
    keys: list[str] = []
    here: list[tuple[str | None, type[BaseModel]]] = [(None, root)]
    section: type[BaseModel] | None = root
    for step in loc:
        tagged = [model for tag, model in here if step == tag or step == model.__name__]
        if tagged and not any(step in _fields(model) for _, model in here if len(here) == 1):
            here = [(None, tagged[0])]
            continue
        if isinstance(step, str):
            owners = [model for _, model in here if step in _fields(model)]
            if owners:
                keys.append(step)
                section = owners[0]
                here = _members(_fields(owners[0])[step].annotation)
                continue
            if step in ("float", "int", "str") or step.startswith(("function-", "literal[", "tuple[", "constrained-")):
                continue
            if here:
                section = here[0][1]
        keys.append(str(step))
    return keys, section


def _tags(root: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys of which one must be given at ``loc``, where a union is told apart by its keys."""
    here: list[tuple[str | None, type[BaseModel]]] = [(None, root)]
    for step in loc:
        fields = [_fields(model)[step] for _, model in here if step in _fields(model)]
        if fields:
            here = _members(fields[0].annotation)
    return [tag for tag, _ in here if tag]
