"""The base of every config: type checks when it is made, JSON, hash and diff; and the map that configs hold values by name in."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from typing import Any, Literal

from chameleon_jax.errors import ConfigError, did_you_mean


class FrozenMap(dict):
    """A dict that does not change, so that it has a hash and a config with one stays hashable."""

    def __init__(self, items: Any = ()):
        super().__init__({k: tuple(v) if isinstance(v, list) else v for k, v in dict(items).items()})

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __reduce__(self):
        return FrozenMap, (dict(self),)

    def _refuse(self, *args: object, **kwargs: object) -> None:
        raise TypeError("a FrozenMap does not change: make another")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base: type checks at construction, JSON, hash and diff."""

    def __post_init__(self):
        types_of = hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # gin and JSON write sequences as lists; configs stay hashable
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if isinstance(value, dict) and not isinstance(value, FrozenMap):
                value = FrozenMap(value)
                object.__setattr__(self, field.name, value)
            if not _matches(value, types_of[field.name]):
                wanted, near = _type_name(types_of[field.name]), _nearest(value, types_of[field.name])
                raise ConfigError(f"{type(self).__name__}.{field.name}: expected {wanted}, got {_plain(value)}{near}")
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError when fields contradict each other."""

    def require(self, condition: bool, message: str) -> None:
        """Raise ConfigError with this config's name in front unless `condition` holds."""
        if not condition:
            raise ConfigError(f"{type(self).__name__}: {message}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict; tuples become lists, as in JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """Inverse of `to_dict`; an unknown key is an error that names the nearest field."""
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__}: expected an object with its fields, got {_plain(values)}")
        types_of = hints(cls)
        known = [f.name for f in dataclasses.fields(cls)]
        made = {}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"{cls.__name__}: unknown field '{key}'{did_you_mean(key, known)}")
            made[key] = _from_plain(value, types_of[key])
        return cls(**made)

    def hash(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def diff(self, other: Config | dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Map dotted field path -> (mine, other's) for every leaf that differs."""
        theirs = other.to_dict() if isinstance(other, Config) else other
        mine_flat, theirs_flat = _flatten(self.to_dict()), _flatten(theirs)
        keys = sorted(mine_flat.keys() | theirs_flat.keys())
        return {k: (mine_flat.get(k), theirs_flat.get(k)) for k in keys if mine_flat.get(k) != theirs_flat.get(k)}


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a config's fields, by name."""
    return typing.get_type_hints(cls)


def _matches(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(v, args[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_matches(k, args[0]) and _matches(v, args[1]) for k, v in value.items())
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, a) for a in args)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    """What a field takes, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin is tuple:
        return f"a list of {_type_name(args[0])}"
    if origin is dict:
        return f'a mapping of {_type_name(args[0])} to {_type_name(args[1])}, as in {{"name": ...}}'
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if a is types.NoneType else _type_name(a) for a in args)
    return getattr(hint, "__name__", str(hint))


def _plain(value: Any) -> str:
    """A value with its kind, a config by its name alone."""
    if isinstance(value, Config):
        return type(value).__name__
    if isinstance(value, float) and math.isnan(value):
        return "NaN, which is no number"
    return f"{value!r} ({'dict' if isinstance(value, dict) else type(value).__name__})"


def _nearest(value: Any, hint: Any) -> str:
    """The choice that a word was meant to be, or how a list of one is written."""
    hints = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    choices = [a for h in hints if typing.get_origin(h) is Literal for a in typing.get_args(h) if isinstance(a, str)]
    if isinstance(value, str) and any(_matches((value,), h) for h in hints):
        return f"; a list of one is written ['{value}']"
    return did_you_mean(value, choices) if isinstance(value, str) else ""


def _from_plain(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_from_plain(v, typing.get_args(hint)[0]) for v in value)
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return FrozenMap({key: _from_plain(item, typing.get_args(hint)[1]) for key, item in value.items()})
    for kind in typing.get_args(hint) or (hint,):  # of an optional config, the config
        if isinstance(kind, type) and issubclass(kind, Config) and isinstance(value, dict):
            return kind.from_dict(value)
    return value


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = ((str(i), v) for i, v in enumerate(value))
    else:
        return {prefix[:-1]: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flatten(item, f"{prefix}{key}."))
    return flat
