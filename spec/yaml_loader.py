"""YAML as these files mean it: no duplicate keys, no surprising types, errors that name the key.

YAML 1.1, which PyYAML reads, turns ``off`` into a bool, ``010`` into 8, ``1:30`` into 90 and
``1e-12`` into text. Here only ``true`` and ``false`` are bools, integers are decimal (or ``0x``),
``1e-12`` is a number, and everything else is text, which a key that wants a number refuses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from spec.errors import SpecError

__all__ = ["check_keys", "find_file", "load_yaml", "preset_names"]

_PRESETS = Path(__file__).parent / "presets"
_MAX_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """A safe loader with its own implicit types and without duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        if isinstance(node, yaml.MappingNode):
            for key_node, _ in node.value:
                line = key_node.start_mark.line + 1
                if key_node.tag != "tag:yaml.org,2002:str":
                    value = getattr(key_node, "value", None)
                    shown = value if isinstance(value, str) else "a collection"
                    raise SpecError(f"line {line}", "a key must be text", shown)
                if key_node.value in seen:
                    raise SpecError(f"line {line}", "a key must not appear twice", key_node.value)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|[0-9]+[eE][-+]?[0-9]+)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def preset_names(kind: str) -> tuple[str, ...]:
    """Names of the presets of a kind: ``machines``, ``networks`` or ``technologies``."""
    return tuple(sorted(path.stem for path in (_PRESETS / kind).glob("*.yaml")))


def find_file(kind: str, name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a preset's name, or the path itself when it looks like one.

    What has a folder or a ``.yaml``/``.yml`` suffix is a path; anything else is a preset's name.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.name != text:
        return path
    names = preset_names(kind)
    if text not in names:
        raise SpecError(kind, f"must be a .yaml file or one of {', '.join(names)}", text)
    return _PRESETS / kind / f"{text}.yaml"


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a file that is one mapping; :class:`SpecError` names the file, and a line if known."""
    file = str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", file=file) from None
    if len(data) > _MAX_BYTES:
        raise SpecError(f"must be at most {_MAX_BYTES} bytes long", file=file)
    try:
        value = yaml.load(data.decode("utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except SpecError as error:
        raise SpecError(error.key, error.rule, error.got, file=file) from None
    except UnicodeDecodeError:
        raise SpecError("must be UTF-8 text", file=file) from None
    except RecursionError:
        raise SpecError("is nested too deeply", file=file) from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        where = f"line {mark.line + 1}" if mark is not None else ""
        raise SpecError(where, f"is not valid YAML: {problem}", file=file) from None
    if not isinstance(value, dict):
        raise SpecError("must be a mapping of keys to values", got=value, file=file)
    return value


def check_keys(value: Any, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """``value`` if it is a mapping with every required key and no unknown one."""
    required, optional = tuple(required), tuple(optional)
    if not isinstance(value, dict):
        raise SpecError("", f"must be a mapping with {', '.join(required or optional)}", value)
    for key in value:
        if key not in required and key not in optional:
            known = ", ".join(required + optional)
            raise SpecError(str(key), f"is not a known key here (known: {known})")
    for key in required:
        if key not in value:
            raise SpecError(key, "is missing")
    return value
