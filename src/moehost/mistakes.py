"""What a validation by pydantic finds wrong, as a person says it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError


def lines(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """A line for each mistake: the key's path, the reason, and the way to mend it.

    + root: the model that was validated
    """
    for details in error.errors(include_url=False):
        path = _path(details["loc"])
        match details["type"]:
            case "extra_forbidden":
                unknown, known = str(details["loc"][-1]), _known_keys(root, details["loc"][:-1])
                near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                yield f"{path}: unknown setting; {hint}"
            case "missing":
                yield f"{path}: missing; add it"
            case "value_error":
                # A validator's own sentence; one that concerns the node as a whole names its path itself.
                yield ": ".join(filter(None, (path, str(details["ctx"]["error"]))))
            case "literal_error":
                near = difflib.get_close_matches(str(details["input"]), _quoted(details["ctx"]["expected"]), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield f"{path}: {details['input']!r} is not one of {details['ctx']['expected']}{hint}"
            case _:
                shown = repr(details["input"])
                reason = details["msg"][0].lower() + details["msg"][1:]
                yield f"{path}: {shown if len(shown) < 60 else shown[:57] + '...'}: {reason}"


def _path(location: tuple[str | int, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)


def _known_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for part in location:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [arg for arg in get_args(annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
            model = inner[0] if inner else annotation  # type: ignore[assignment]
    return list(model.model_fields)
