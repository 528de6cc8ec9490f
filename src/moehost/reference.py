"""The settings as a page to read; `docs/settings.md` is this page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from moehost import settings

INTRODUCTION = """\
# Settings

What an owner may write for a host in `inventory/`; `moehost check-inventory` checks it without touching a machine.
Keys that start with `x_` are yours: moehost ignores them. pyinfra's own keys (`ssh_user`, `_sudo` ...) work as
always.
This page is made from the code by `moehost settings`.
"""


def page() -> str:
    """The reference in Markdown: one table for each group of settings, the host's own first."""
    return "\n".join([INTRODUCTION, *_sections(settings.Node, "A host")])


def _sections(model: type[BaseModel], title: str) -> Iterator[str]:
    yield f"## {title}\n\n{(model.__doc__ or '').strip()}\n"
    yield "| setting | values | default | meaning |\n| --- | --- | --- | --- |"
    inner: list[tuple[type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        group = _group(field.annotation)
        if group:
            inner.append((group, f"`{name}`"))
        description = field.description or (f"see `{name}` below" if group else "")
        yield f"| `{name}` | {_values(field)} | {_default(field)} | {description} |"
    yield ""
    for group, heading in inner:
        yield from _sections(group, heading)


def _group(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _values(field: FieldInfo) -> str:
    names = _type(field.annotation)
    limits = [f"≥ {each.ge}" for each in field.metadata if hasattr(each, "ge")]
    limits += [f"≤ {each.le}" for each in field.metadata if hasattr(each, "le")]
    return ", ".join([names, *limits])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if arguments and (origin is Union or type(None) in arguments):
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    return {str: "text", bool: "yes or no", int: "whole number", float: "number"}.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "" if field.default_factory else "**required**"
    return "none" if field.default is None else f"`{field.default}`"
