"""What all settings have in common: how values are checked, and that nothing unknown passes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def matching(pattern: str, rule: str) -> AfterValidator:
    """A string that matches a pattern; the message states the rule in words."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r}: {rule}")
        return value

    return AfterValidator(check)


Fingerprint = Annotated[str, matching(r"[0-9A-F]{40}", "write the 40 digits of the fingerprint without spaces")]


class Settings(BaseModel):
    """Common ground: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
