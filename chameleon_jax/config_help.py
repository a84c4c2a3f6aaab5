"""What the fields of a config are, told from its dataclass: for `--help`, and for a flag that is a field.

Comments in the source of a config, above a field or at the end of its line, are what is said about the field.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from typing import Any, Literal

from chameleon_jax.config_base import Config, hints

_WIDTH = 120


def reachable(root: type[Config]) -> list[type[Config]]:
    """The class and those of the configs that its fields hold, at any depth, in the order of the fields."""
    found: dict[type[Config], None] = {}

    def visit(cls: type[Config]) -> None:
        if cls not in found:
            found[cls] = None
            for hint in hints(cls).values():
                for inner in _configs_in(hint):
                    visit(inner)

    visit(root)
    return list(found)


def nested(cls: type[Config], field: str) -> type[Config] | None:
    """The config that a field holds, if it holds one or None; not of a list or map of them."""
    hint = hints(cls)[field]
    parts = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
    one = len(parts) == 1 and isinstance(parts[0], type) and typing.get_origin(hint) not in (tuple, dict)
    return parts[0] if one and issubclass(parts[0], Config) else None


def settings(root: type[Config]) -> dict[str, list[str]]:
    """Field name -> `Class.field` of each class below `root` that has it, for fields that a flag can set alone."""
    found: dict[str, list[str]] = {}
    for cls in reachable(root):
        for field in dataclasses.fields(cls):
            if not _configs_in(hints(cls)[field.name]):
                found.setdefault(field.name, []).append(f"{cls.__name__}.{field.name}")
    return found


def text(root: type[Config]) -> str:
    """All settings of a command, as `--help` shows them: a flag with its default, what it may be, and what it is for."""
    lines = ["Settings, as flags or as lines of a gin file without --gin. (... has no default):"]
    for cls in reachable(root):
        title = f"{cls.__name__}: {_summary(cls)}"
        lines += ["", *textwrap.wrap(title, _WIDTH, initial_indent="  ", subsequent_indent="    ")]
        said = _comments(cls)
        for field in dataclasses.fields(cls):
            hint = hints(cls)[field.name]
            flag = f"--gin.{cls.__name__}.{field.name}={_default(field, hint)}"
            about = "; ".join(filter(None, (_kind(field, hint), said.get(field.name))))
            lines += textwrap.wrap(
                f"{flag}  {about}", _WIDTH, initial_indent="    ", subsequent_indent=" " * 10, break_on_hyphens=False
            )
    return "\n".join(lines)


def _summary(cls: type[Config]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _configs_in(hint: Any) -> list[type[Config]]:
    if args := typing.get_args(hint):
        return [found for part in args for found in _configs_in(part)]
    return [hint] if isinstance(hint, type) and issubclass(hint, Config) else []


def _choices(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [choice for part in typing.get_args(hint) for choice in _choices(part)]


def _default(field: dataclasses.Field, hint: Any) -> str:
    """As it is written behind `=`; of a config, what makes one."""
    if configs := _configs_in(hint):
        made = f"@{configs[0].__name__}()"
        return f"[{made}]" if typing.get_origin(hint) is tuple else f"{{'NAME':{made}}}" if _is_map(hint) else made
    if field.default is not dataclasses.MISSING:
        return field.default if isinstance(field.default, str) and field.default else repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory()).replace(" ", "")
    return "..."


def _is_map(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def _kind(field: dataclasses.Field, hint: Any) -> str:
    if choices := _choices(hint):
        *first, last = map(str, choices)
        listed = f"{', '.join(first)} or {last}" if first else last
        return f"list of {listed}" if typing.get_origin(hint) is tuple else listed
    if _configs_in(hint):
        nothing = (dataclasses.MISSING, None, ())
        if field.default in nothing and field.default_factory is dataclasses.MISSING:
            return "required" if field.default is dataclasses.MISSING else "none by default"
        return ""
    return _plain(hint)


def _plain(hint: Any) -> str:
    """A type in words: `int | None` is 'int or None', `tuple[str, ...]` is 'list of str'."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"list of {_plain(args[0])}"
    if origin is dict:
        return f"map of {_plain(args[0])} to {_plain(args[1])}"
    if args:
        return " or ".join(map(_plain, args))
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


@functools.cache
def _comments(cls: type[Config]) -> dict[str, str]:
    """Comments by field, those of the classes that it extends among them."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Config) and base is not Config:
            found |= _comments_of(textwrap.dedent(inspect.getsource(base)))
    return found


def _comments_of(source: str) -> dict[str, str]:
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above, at = [], node.lineno - 2
            while lines[at].lstrip().startswith("#"):
                above.insert(0, lines[at].lstrip("# "))
                at -= 1
            behind = lines[node.end_lineno - 1][node.end_col_offset :].lstrip("# ")
            if said := " ".join(filter(None, (*above, behind))):
                found[node.target.id] = said
    return found
