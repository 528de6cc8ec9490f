"""Rules of `--override-tensor`: written for layers, checked against a grammar, applied to names as the engine does.

A rule is ``REGEX=DEVICE``; the first rule whose regex is found anywhere in a tensor's name decides. The engine reads
the regex as ECMAScript. Rules here keep to a grammar on which ECMAScript and Python agree, and to characters that
systemd, shells and the engine's own splitting at commas leave alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXPERTS = "ffn_(gate_up|gate|up|down)_exps"

_DEVICE = re.compile(r"CPU|CUDA[0-9]{1,2}")
_TOKEN = re.compile(
    r"(?P<atom>[A-Za-z0-9_.-]|\[\^?(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[A-Za-z0-9_.])+\])"
    r"|(?P<repeat>[*+?])|(?P<open>\()|(?P<close>\))|(?P<bar>\|)|(?P<start>\^)"
)
# What may come after what: a quantifier needs something to repeat, an alternative may not be empty.
_FOLLOWS = {
    "begin": {"atom", "open", "start"},
    "start": {"atom", "open"},
    "atom": {"atom", "open", "close", "bar", "repeat", "end"},
    "repeat": {"atom", "open", "close", "bar", "end"},
    "open": {"atom", "open"},
    "close": {"atom", "open", "close", "bar", "repeat", "end"},
    "bar": {"atom", "open"},
}


class RuleError(ValueError):
    """A rule that does not keep to the grammar; one line with the rule and what is wrong in it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One override: tensors in whose name the pattern is found go to the device."""

    pattern: re.Pattern[str]
    device: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Reads ``REGEX=DEVICE``; raises RuleError for what another regex engine might read differently."""
        regex, equals, device = text.partition("=")
        if not equals or not _DEVICE.fullmatch(device):
            raise RuleError(f"rule {text!r}: must end in =CPU or =CUDA<n>")
        state, depth, at = "begin", 0, 0
        while at < len(regex):
            token = _TOKEN.match(regex, at)
            kind = token.lastgroup or "" if token else "other"
            depth += (kind == "open") - (kind == "close")
            if kind not in _FOLLOWS[state] or depth < 0:
                raise RuleError(
                    f"rule {text!r}: cannot have {regex[at:][:12]!r} there; write [.] for a dot, (a|b), [0-9]"
                )
            state, at = kind, token.end() if token else at
        if depth or "end" not in _FOLLOWS[state]:
            raise RuleError(f"rule {text!r}: ends too early; close its brackets and alternatives")
        try:
            return cls(re.compile(regex), device)
        except re.error as error:
            raise RuleError(f"rule {text!r}: {error}") from error

    def __str__(self) -> str:
        return f"{self.pattern.pattern}={self.device}"


def experts_rule(layers: Iterable[int], device: str) -> str:
    """The rule that keeps the routed experts of these layers on a device: gate, up and down together."""
    return f"blk[.]({_alternatives(sorted(set(layers)))})[.]{EXPERTS}.*={device}"


def _alternatives(numbers: Sequence[int]) -> str:
    """Numbers as alternatives, runs of four and more within ten as a range: ``0|1|2``, ``[0-9]|1[0-4]``."""
    parts: list[str] = []
    run: list[int] = []
    for number in [*numbers, -1]:
        if run and (number != run[-1] + 1 or number % 10 == 0):
            tens = str(run[0] // 10) if run[0] > 9 else ""
            if len(run) < 4:
                parts += map(str, run)
            else:
                parts.append(f"{tens}[{run[0] % 10}-{run[-1] % 10}]")
            run = []
        run.append(number)
    return "|".join(parts)


def device_of(name: str, rules: Sequence[Rule]) -> str | None:
    """Where the first rule that applies puts a tensor; None where none does."""
    return next((rule.device for rule in rules if rule.pattern.search(name)), None)
