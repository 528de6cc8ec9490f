"""llama-server: the command line of a service, per engine dialect, and the contract with the installed binary.

This is the one place where a command line is assembled. Two dialects exist: `ik` (ik_llama.cpp) and `llama.cpp`
(mainline, also what Debian packages); they share most flags and drift apart, so each command line is checked against
the `--help` of the very binary that will run it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from moehost.container import KEYS_PATH
from moehost.settings import Sampling, Service

Dialect = Literal["ik", "llama.cpp"]

# Accepted by ik_llama.cpp 8337e4cd but not printed by its --help.
IK_HIDDEN_FLAGS = frozenset(
    [
        *("-a", "--alias", "--n-predict", "--n-gpu-layers", "--n-gpu-layers-draft"),
        *("--peg", "-rcache", "--rope-cache", "--logit-bias"),
    ]
)
# Where the server finds its keys: systemd expands %d to the unit's credentials directory, Podman mounts a secret.
API_KEYS = {"native": "%d/api-keys", "container": KEYS_PATH}
REMOVED = "the argument has been removed"
PROBE_MODEL = "/nonexistent/probe.gguf"
# The engines' own defaults of --cache-ram and, per slot, --ctx-checkpoints.
PROMPT_CACHE_MIB = 8192
CHECKPOINTS = 32


@dataclass(frozen=True, slots=True)
class Offload:
    """Where a model's tensors live and how its work is split, independent of the engine's spelling.

    `tensor_overrides` are `REGEX=DEVICE` rules, first match wins; `gpu_layers` is None without a GPU;
    `prompt_cache_mib` and `checkpoints` (per slot) bound what the server keeps in the host's memory; `numa` is the
    engine's own way with several nodes, `static_pages` whether the weights lie on huge pages that were set aside;
    `workers` are HOST:PORT of nodes that hold layers, `devices` all that get some, in the order of their layers.
    """

    context: int
    parallel: int
    batch: int
    ubatch: int
    threads: int
    threads_batch: int
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    gpu_layers: int | None = None
    tensor_overrides: tuple[str, ...] = ()
    cpu_moe: bool = False
    split_mode: str | None = None
    tensor_split: tuple[float, ...] = ()
    cuda_params: str | None = None
    prompt_cache_mib: int = PROMPT_CACHE_MIB
    checkpoints: int = CHECKPOINTS
    numa: str | None = None
    static_pages: bool = False
    workers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """What `llama-server --version` says of itself."""

    text: str
    build: int | None
    commit: str | None

    @classmethod
    def parse(cls, output: str) -> Version:
        """Read e.g. `version: 4840 (8337e4cd3)` or `version: 0.7.0 (build 11669, commit Debian)`.

        What it does not say is None.
        """
        found = re.search(r"^version: *(.*\S)", output, re.MULTILINE)
        if not found:
            return cls("unknown version", None, None)
        text = found[1]
        build = re.search(r"\bbuild (\d+)|^(\d+) \(", text)
        commit = re.search(r"(?:\(|commit )([0-9a-f]{7,40})\b", text)
        return cls(text, int(build[1] or build[2]) if build else None, commit[1] if commit else None)


def offload_arguments(offload: Offload, dialect: Dialect) -> list[str]:
    """The flags of an offload: where tensors live, batches, threads, KV cache."""
    return list(_offload(offload, dialect))


def _offload(offload: Offload, dialect: Dialect) -> Iterator[str]:
    yield from ("-c", str(offload.context), "-np", str(offload.parallel))
    yield from ("-b", str(offload.batch), "-ub", str(offload.ubatch))
    yield from ("-t", str(offload.threads), "-tb", str(offload.threads_batch))
    yield from ("-ctk", offload.kv_type_k, "-ctv", offload.kv_type_v)
    yield from ("-fa", "on")
    if offload.workers:
        # Before what names their devices. ik_llama.cpp left alone would count each of them twice.
        yield from ("--rpc", ",".join(offload.workers), "-dev", ",".join(offload.devices))
    if offload.gpu_layers is not None:
        yield from ("-ngl", str(offload.gpu_layers))
    if offload.split_mode:
        yield from ("-sm", offload.split_mode)
    if offload.tensor_split:
        yield from ("-ts", ",".join(f"{share:g}" for share in offload.tensor_split))
    if offload.tensor_overrides:
        yield from ("-ot", ",".join(offload.tensor_overrides))
    if offload.cpu_moe:
        yield "--cpu-moe"
    if offload.cuda_params and dialect == "ik":
        yield from ("-cuda", offload.cuda_params)
    if offload.prompt_cache_mib != PROMPT_CACHE_MIB:
        yield from ("--cache-ram", str(offload.prompt_cache_mib))
    if offload.checkpoints != CHECKPOINTS:
        yield from ("--ctx-checkpoints", str(offload.checkpoints))
    if offload.numa:
        yield from ("--numa", offload.numa)
    # Weights in anonymous memory: mapped files are read page by page and can be evicted under a running server.
    # `-thp` maps such memory, too, and reads the file into it.
    yield from (
        (("-thp",) if offload.static_pages else ("--no-mmap",))
        if dialect == "ik"
        else ("--load-mode", "none", "--fit", "off")
    )


def command_line(service: Service, model_path: str, offload: Offload, dialect: Dialect) -> list[str]:
    """The arguments of llama-server for a service; the owner's `server_args` come last, so they win."""
    return [
        *("-m", model_path, "--alias", service.name),
        *("--host", service.host, "--port", str(service.port), "--api-key-file", API_KEYS[service.runtime]),
        *offload_arguments(offload, dialect),
        *_sampling(service.sampling),
        # No slots endpoint: it shows the prompts of others.
        *("--jinja", "--metrics", "--no-slots"),
        *service.server_args,
    ]


def _sampling(sampling: Sampling) -> Iterator[str]:
    yield from ("--temp", f"{sampling.temperature:g}", "--repeat-penalty", f"{sampling.repeat_penalty:g}")
    yield from ("--min-p", f"{sampling.min_p:g}", "--top-p", f"{sampling.top_p:g}", "--top-k", str(sampling.top_k))


def known_flags(help_text: str) -> frozenset[str]:
    """All flags that a `--help` lists, both dialects' formats; those it calls removed are left out."""
    flags: set[str] = set()
    lines = help_text.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if not _starts_option(line):
            continue
        # A description stands beside its flags or, where these are long, below them.
        if REMOVED in line or (REMOVED in below and not _starts_option(below)):
            continue
        text = line.lstrip()
        while found := re.match(r"(-{1,2}[A-Za-z][\w.-]*)(\(s\))?", text):
            flags.add(found[1])
            if found[2]:
                flags.add(found[1] + "s")
            following = re.match(r"(?: [^\s,]+)?,\s+(?=-)", text[found.end() :])
            if not following:
                break
            text = text[found.end() + following.end() :]
    return frozenset(flags)


def _starts_option(line: str) -> bool:
    """Whether a line of `--help` names flags; what is indented further belongs to the description of some."""
    text = line.lstrip()
    return text.startswith("-") and len(line) - len(text) <= 12


def is_flag(word: str) -> bool:
    """Whether a word of a command line is a flag; a negative number is none."""
    return re.match(r"-{1,2}[A-Za-z]", word) is not None


def unknown_flags(arguments: Iterable[str], help_text: str, dialect: Dialect) -> list[str]:
    """The flags of a command line that the binary with this `--help` does not know, each with its nearest neighbour.

    One line for each, such as `--no-mmapp (did you mean --no-mmap?)`.
    """
    known = known_flags(help_text) | (IK_HIDDEN_FLAGS if dialect == "ik" else frozenset())
    lines = []
    for word in arguments:
        if is_flag(word) and word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
            lines.append(f"{word} (did you mean {near[0]}?)" if near else word)
    return lines


def probe_arguments(arguments: Sequence[str]) -> list[str]:
    """The same command line, made harmless: no such model, no key file, any free port, no workers.

    A worker has one client at a time, and lets every other wait.

    llama-server reads all arguments before it looks for the model, so a wrong flag or value shows within a second
    and without touching the service that runs; see `refusal`.
    """
    words = without(arguments, "--api-key-file", "--rpc", "-dev")
    for flag, value in (("-m", PROBE_MODEL), ("--port", "0")):
        words[words.index(flag) + 1] = value
    return words


def without(arguments: Sequence[str], *flags: str) -> list[str]:
    """A command line without these flags and the one value of each."""
    words = list(arguments)
    for flag in flags:
        while flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return words


def refusal(output: str) -> str | None:
    """The sentence with which llama-server refuses `probe_arguments`, or None if it took them and missed the model.

    What is recognised is the missing model: a refusal has many forms, from a sentence above the usage to the last
    words of a crash, and ik_llama.cpp says no more than `stoi` about a word where a number should be.
    """
    if re.search(rf"(?:failed|unable|error).*{re.escape(PROBE_MODEL)}", output):
        return None
    before_usage = re.split(r"^usage:", output, maxsplit=1, flags=re.MULTILINE)[0]
    said = [line for line in map(_complaint, before_usage.splitlines()) if line]
    reason = " / ".join(said[-4:]) or "it ends without a word"
    return f"{reason} (a value is no number, or too large)" if re.search(r"\bsto[a-z]+$", reason) else reason


def _complaint(line: str) -> str:
    """A line without its log prefix and preamble, empty if it only informs."""
    if re.match(r"\s*(?:INFO \[|[\d.]+ [DIW] |warning:|terminate called)", line):
        return ""
    return " ".join(re.sub(r"^\s*(?:[\d.]+ E |what\(\): *|error: )", "", line).split())
