"""llama-bench: the command that measures what a llama-server's command line would do, and what it prints.

It loads a model once and goes through lists of threads and ubatches with it; a list may name a value again, so that
rounds of several settings alternate. Its own parser spells some flags of the server differently, in both dialects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moehost.engine import Dialect, is_flag

# Flags that both programs spell alike, with one value.
_SAME = ("-m", "-ctk", "-ctv", "-ngl", "-sm", "-cuda", "--numa")
EXPERTS_ON_CPU = "ffn_(gate_up|gate|up|down)_exps=CPU"


class BenchError(ValueError):
    """Output that holds no measurement; one line."""


@dataclass(frozen=True)
class Row:
    """One test: `tokens` of a prompt or, with `is_decode`, of an answer, and the seconds of each run."""

    ubatch: int
    threads: int
    kv_type: str
    tokens: int
    is_decode: bool
    seconds: tuple[float, ...]


def load_arguments(arguments: Sequence[str], dialect: Dialect) -> list[str]:
    """What decides over loading: where the tensors live; from the arguments of a server, of which the last wins.

    Without a card nothing is warmed up before each test, since there is no kernel to start and no memory to pin.
    """
    given = dict(_pairs(arguments))
    words = [word for flag in _SAME if flag in given for word in (flag, given[flag])]
    if "-ts" in given:  # a comma would begin another test
        words += ["-ts", given["-ts"].replace(",", "/")]
    rules = [given["-ot"]] if "-ot" in given else []
    rules += [EXPERTS_ON_CPU] if "--cpu-moe" in given else []
    if rules:
        words += ["-ot", ",".join(rules) if dialect == "ik" else ",".join(rules).replace(",", ";")]
    if "-ngl" not in given:
        words += ["-w", "0"] if dialect == "ik" else ["--no-warmup"]
    if dialect == "ik":
        return [*words, "-fa", "1", *(("-thp", "1") if "-thp" in given else ("-mmp", "0"))]
    return [*words, "-fa", "on", "-lm", given.get("--load-mode", "none")]


def test_arguments(
    threads: Sequence[int], ubatches: Sequence[int], batch: int, prompt_tokens: int, answer_tokens: int
) -> list[str]:
    """One run each of a prompt and of an answer for each ubatch, in this order, with each number of threads."""
    lists = {"-t": threads, "-ub": ubatches}
    words = [word for flag, values in lists.items() for word in (flag, ",".join(map(str, values)))]
    return [
        *words,
        *("-b", str(batch), "-p", str(prompt_tokens), "-n", str(answer_tokens), "-r", "1", "-o", "json"),
    ]


def rows(text: str) -> list[Row]:
    """Reads what `-o json` prints, in both dialects; raises BenchError."""
    try:
        return [_row(each) for each in json.loads(text)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"llama-bench: prints no measurement ({error!r:.80})") from None


def _row(data: Mapping[str, object]) -> Row:
    prompt, answer, threads = (int(str(data[key])) for key in ("n_prompt", "n_gen", "n_threads"))
    samples = data["samples_ns"]
    if not isinstance(samples, list) or not samples or not (prompt or answer):
        raise ValueError("no samples")
    seconds = tuple(float(each) / 1e9 for each in samples)
    return Row(int(str(data["n_ubatch"])), threads, str(data["type_k"]), prompt or answer, not prompt, seconds)


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags with the word behind them, empty where that is a flag again."""
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        if is_flag(word):
            yield word, "" if is_flag(after) else after
