"""YAML files checked by pydantic: an error names the file, the row, the key and the value."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml

from erk.io.files import read_regular

T = TypeVar("T")
MAX_BYTES = 1 << 20  # of a file: reading YAML of this size takes a second
MAX_DIGITS = 100  # of a number: longer ones fit no float and take long to read
MISSING = ("missing", "missing_argument")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
NO_MAPPING = ("model_type", "dataclass_type", "dict_type")


def read_config(path: Path, kind: type[T]) -> T:
    """Read a YAML file as a pydantic model, a dataclass, or a dict of rows of these.

    Raises OSError, or ValueError that names the file, the row, the key and the invalid value.
    """
    return validated(read_yaml(path), kind, path)


def validated(content: Any, kind: type[T], path: Path | str) -> T:
    """Validate the content of a file. Raises ValueError as `read_config` does."""
    from pydantic import TypeAdapter, ValidationError  # late: a tenth of a second

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: {_described(first, content, kind)}") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file whose mappings have every key once.

    Raises OSError, or ValueError that names the file and the line.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are allowed")
    data = read_regular(path, MAX_BYTES)
    try:
        return yaml.load(data.decode("utf-8").removeprefix("\ufeff"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: not readable YAML (nested too deeply)") from None
    except Exception as error:  # invalid dates, integers of 5000 digits, keys that are lists
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ValueError(f"{path}{line}: not readable YAML ({reason})") from None


def hint(name: Any, known: Iterable[str]) -> str:
    """Return the nearest known names, or all of them, for a message about an unknown name."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """YAML whose mappings have every key once, with short numbers and strings that UTF-8 has."""

    def construct_scalar(self, node: Any) -> Any:
        """Read a scalar; raise ConstructorError for a long number, UnicodeError for a surrogate."""
        value = super().construct_scalar(node)
        if isinstance(value, str):
            value.encode()
            if node.tag.endswith((":int", ":float")) and len(value) > MAX_DIGITS:
                raise yaml.constructor.ConstructorError(
                    problem=f"a number of {len(value)} characters", problem_mark=node.start_mark
                )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; raise ConstructorError for a repeated key."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key.value in (other.value for other in keys[:index]):
                raise yaml.constructor.ConstructorError(
                    problem=f"two values for '{key.value}'", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def _described(error: Any, content: Any, kind: Any) -> str:
    """Return ``row: key: reason`` of one error of pydantic."""
    keys = _keys(error["loc"], content)
    row, rest = _row(keys, content, kind)
    key = ".".join(map(str, rest))
    where = [part for part in (row, key) if part]
    return ": ".join([*where, _reason(error, keys, kind)])


def _keys(loc: Sequence[Any], content: Any) -> list[Any]:
    """Return the keys of the file that lead to an error; pydantic adds names of types."""
    keys = []
    for index, part in enumerate(loc):
        is_last = index == len(loc) - 1
        if isinstance(content, Mapping) and (part in content or is_last) and part != "[key]":
            keys.append(part)
            content = content.get(part)
        elif isinstance(content, Sequence) and isinstance(part, int) and part < len(content):
            keys.append(part)
            content = content[part]
    return keys


def _row(keys: list[Any], content: Any, kind: Any) -> tuple[str, list[Any]]:
    """Split the keys into the row, such as ``row 2 'Heun'``, and the keys within it."""
    if keys and get_origin(kind) is dict:
        return f"row {keys[0]!r}", keys[1:]
    if len(keys) > 1 and isinstance(content[keys[0]], list):
        item = content[keys[0]][keys[1]]
        if isinstance(item, Mapping):
            name = item.get("name")
            label = f"row {keys[1]}" + (f" {name!r}" if isinstance(name, str) else "")
            return label, keys[2:]
    return "", keys


def _reason(error: Any, keys: list[Any], kind: Any) -> str:
    if error["type"] in MISSING:
        return "missing: add it"
    if error["type"] in UNKNOWN:
        return f"unknown key; {hint(keys[-1], _fields(kind, keys[:-1]))}"
    if error["type"] in NO_MAPPING:
        fields = _fields(kind, keys)
        return f"must be a mapping of {', '.join(fields) or 'names to rows'}" + _not(error)
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"]) + _not(error)


def _not(error: Any) -> str:
    value = error["input"]
    text = "null" if value is None else repr(value)
    return f", not {text if len(text) <= 60 else f'{text[:57]}...'}"


def _fields(kind: Any, keys: Sequence[Any]) -> list[str]:
    """Return the keys that are known under ``keys`` of a model or dataclass."""
    for key in keys:
        fields = _members(kind)
        arguments = get_args(_plain(kind))
        if not fields and not arguments:
            return []
        kind = fields.get(key) if fields else arguments[isinstance(key, str)]
    return list(_members(kind))


def _members(kind: Any) -> dict[str, Any]:
    """Return the fields of a model or dataclass with their types; {} of other types."""
    kind = _plain(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {name: field.annotation for name, field in getattr(kind, "model_fields", {}).items()}


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
