"""From a YAML file to a dataclass; a key given twice, unknown or missing, or a wrong type is an error that names it."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from medsam3.messages import did_you_mean

T = TypeVar("T")


class _UniqueKeys(yaml.CSafeLoader):
    """Plain YAML keeps the last of two equal keys; here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a YAML file that holds a mapping.

    Raises:
        ValueError: names the file: it cannot be read, holds a key twice in one mapping, or something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _UniqueKeys)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a mapping of keys to values")
    return {str(key): value for key, value in content.items()}


def build(cls: type[T], content: Any, where: str) -> T:
    """An instance of the dataclass `cls` from a mapping of its field names.

    A list becomes a tuple where a tuple is declared, and a single value a tuple of one.

    Args:
        where: file and key of the mapping, for messages.

    Raises:
        ValueError: not a mapping, an unknown or a missing key, a value of a wrong type.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a mapping of keys, got {content!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in content:
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}.{did_you_mean(key, fields)} Legal: {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise ValueError(f"{where}: the key {name!r} is missing")
    kinds = typing.get_type_hints(cls)
    values = {key: _converted(value, kinds[key], f"{where}: {key}") for key, value in content.items()}
    return cls(**values)


def _converted(value: Any, kind: Any, where: str) -> Any:
    """The value, with lists as tuples where declared; an error if it is of another type than `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else build(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _first_fitting(value, arguments, where)
    if origin is tuple:
        given = list(value) if isinstance(value, list | tuple) else [value]
        if arguments[-1] is Ellipsis:
            return tuple(_converted(v, arguments[0], where) for v in given)
        if len(given) != len(arguments):
            raise ValueError(f"{where}={value!r}: expected {len(arguments)} values")
        return tuple(_converted(v, a, where) for v, a in zip(given, arguments, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}={value!r}: expected a mapping")
        key_kind, value_kind = arguments
        return {_converted(k, key_kind, where): _converted(v, value_kind, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}={value!r}: expected {_in_words(kind)}")
    return value


def _first_fitting(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    nested = [kind for kind in kinds if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
    if nested and isinstance(value, dict):
        return build(nested[0], value, where)  # so that the message names the key in it
    for kind in kinds:
        try:
            return _converted(value, kind, where)
        except ValueError:
            continue
    raise ValueError(f"{where}={value!r}: expected {' or '.join(_in_words(k) for k in kinds)}")


def _in_words(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    words = {tuple: "a list", dict: "a mapping"}
    if dataclasses.is_dataclass(kind):
        return words[dict]
    return names.get(kind) or words.get(typing.get_origin(kind), str(kind))
