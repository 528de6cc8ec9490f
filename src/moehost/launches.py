"""From a probe of `tune` to what a node launches for it, and back from what came of it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from moehost import engine, llama_bench
from moehost.launch import Run
from moehost.llama_bench import BenchError, Row
from moehost.probes import Measured, Outcome, Probe
from moehost.space import Choice, Space
from moehost.speed import PUBLISHED, Speed
from moehost.tune import follow

# Where nobody has measured the disk: less than any SSD reads.
DISK_FLOOR_GB_S = 0.4
# A load that is shorter is done anew for each round, so that rounds of choices with loads of their own alternate.
CHEAP_LOAD_S = 5.0
MOST_ANSWER_TOKENS = 128
# How much longer than predicted a launch may take, beside its load; the model knows small machines badly.
PATIENCE, GRACE_S, LOADS = 8.0, 120.0, 3.0
# What an engine takes before and after everything else.
START_S = 2.0
OUT_OF_MEMORY = re.compile(
    r"^.*(?:out of memory|insufficient memory|failed to allocate|unable to allocate|bad_alloc).*$", re.I | re.M
)
REFUSED = re.compile(r"^.*(?:invalid parameter|unknown argument|invalid argument|error: ).*$", re.M)
DRAFT_PROMPT = "Explain step by step, with examples, how a steam engine turns heat into motion. "


def load_s(space: Space, disk_gb_s: float | None) -> float:
    """What reading the model takes when nothing of it is in memory."""
    size_bytes = sum(header.file_size_bytes for header in space.found.headers)
    return size_bytes / 1e9 / (disk_gb_s or DISK_FLOOR_GB_S)


def runs(space: Space, probe: Probe, number: int, engine_folder: str, disk_gb_s: float | None) -> list[Run]:
    """What the node launches for the probe of this number, in this order.

    Choices that differ in threads and ubatch only share a load and alternate within it, in an order that the seed
    decides anew for each round; where loads are dear, the others alternate in two passes, there and back.

    + engine_folder: folder of the release with `llama-server` and `llama-bench` in it
    + disk_gb_s: what the node's disk was measured to read
    """
    order = random.Random(f"{space.seed} {number}")  # noqa: S311  (no secret)
    wait_s = _wait_s(space, disk_gb_s)
    if probe.kind == "fit":
        plan = space.plan(probe.choices[0])
        argv = [f"{engine_folder}/llama-server", *plan.arguments]
        return [Run("fit", "fit", argv, wait_s, plan.placement.env)]
    seconds = {each: space.predicted_s(space.plan(each), each, None) for each in probe.choices}
    if probe.kind == "server":
        return [_server(space, each, engine_folder, wait_s + PATIENCE * seconds[each]) for each in probe.choices]
    loads: dict[str, list[Choice]] = {}
    for choice in probe.choices:
        loads.setdefault(load_of(space, choice), []).append(choice)
    passes = 1
    if len(loads) > 1:
        passes = space.rounds if load_s(space, disk_gb_s) < CHEAP_LOAD_S else min(2, space.rounds)
    made = []
    for index in range(passes):
        share = space.rounds // passes + (index < space.rounds % passes)
        for name in list(loads) if index % 2 == 0 else reversed(loads):
            choices = loads[name]
            limit_s = wait_s + PATIENCE * 2 * share * sum(seconds[each] for each in choices)
            made.append(_bench(space, choices, name, share, order, engine_folder, limit_s))
    return made


def _wait_s(space: Space, disk_gb_s: float | None) -> float:
    return GRACE_S + LOADS * load_s(space, disk_gb_s)


def load_of(space: Space, choice: Choice) -> str:
    """What choices have in common that a model is loaded for once."""
    plan = space.plan(choice)
    words = llama_bench.load_arguments(plan.arguments, space.dialect)
    return json.dumps([words, plan.placement.env])


def _bench(
    space: Space, choices: Sequence[Choice], load: str, rounds: int, order: random.Random, folder: str, limit_s: float
) -> Run:
    plan = space.plan(choices[0])
    # Sorted: what a round looks like is up to the seed alone.
    threads = sorted({count for each in choices for count in (each.threads, each.threads_batch)})
    ubatches = sorted({each.ubatch for each in choices})
    lists: dict[str, list[int]] = {"threads": [], "ubatches": []}
    # llama-bench goes through all threads for each ubatch: the list that has something to compare is repeated.
    repeated, values, once = (
        ("threads", threads, "ubatches") if len(ubatches) == 1 else ("ubatches", ubatches, "threads")
    )
    for _ in range(rounds):
        lists[repeated] += order.sample(values, len(values))
    lists[once] = ubatches if once == "ubatches" else threads
    batch = max(space.plan(each).placement.offload.batch for each in choices)
    tests = llama_bench.test_arguments(
        lists["threads"], lists["ubatches"], batch, space.service.workload.prompt_tokens, answer_tokens(space)
    )
    words = llama_bench.load_arguments(plan.arguments, space.dialect)
    return Run("bench", load, [f"{folder}/llama-bench", *words, *tests], limit_s, plan.placement.env)


def answer_tokens(space: Space) -> int:
    """How many tokens of an answer are measured: decode is even enough for not more than these."""
    return min(space.service.workload.answer_tokens, MOST_ANSWER_TOKENS)


def _server(space: Space, choice: Choice, folder: str, limit_s: float) -> Run:
    plan = space.plan(choice)
    words = engine.without(plan.arguments, "--host", "--port", "--api-key-file")
    body = {"n_predict": answer_tokens(space), "ignore_eos": True, "cache_prompt": False, "seed": space.seed}
    # A word or so of this text is a token; the first words differ, so that nothing of it is cached.
    count = max(space.service.workload.prompt_tokens // len(DRAFT_PROMPT.split()), 1)
    requests = [{**body, "prompt": f"{number}. {DRAFT_PROMPT * count}"} for number in range(space.rounds + 1)]
    argv = [f"{folder}/llama-server", *words, "--host", "127.0.0.1"]
    return Run("server", _label(choice), argv, limit_s * len(requests), plan.placement.env, 0, requests)


def _label(choice: Choice) -> str:
    return json.dumps(choice.server_args)


def outcome(space: Space, probe: Probe, ended: Sequence[Mapping[str, Any]]) -> Outcome:
    """What a probe has found, from what the node says of its runs (`launch.Ended`)."""
    elapsed_s = sum(each["elapsed_s"] for each in ended)
    if probe.kind == "fit":
        return Outcome((failure(ended[0]) or "fits",), elapsed_s, ended[0]["output"])
    found = []
    for choice in probe.choices:
        load = load_of(space, choice) if probe.kind == "bench" else _label(choice)
        mine = [each for each in ended if each["load"] == load]
        wrong = next(filter(None, map(failure, mine)), None)
        found.append(wrong or (_of_rows if probe.kind == "bench" else _of_answers)(space, choice, mine))
    return Outcome(tuple(found), elapsed_s)


def _of_rows(space: Space, choice: Choice, ended: Sequence[Mapping[str, Any]]) -> Measured | str:
    try:
        rows = [row for each in ended for row in llama_bench.rows(each["output"])]
    except BenchError as error:
        return str(error)

    def seconds(is_decode: bool, threads: int) -> list[float]:
        mine: list[Row] = [each for each in rows if each.is_decode is is_decode]
        mine = [each for each in mine if (each.ubatch, each.threads) == (choice.ubatch, threads)]
        return [second / (each.tokens if is_decode else 1) for each in mine for second in each.seconds]

    prompt_s, token_s = seconds(False, choice.threads_batch), seconds(True, choice.threads)
    count = min(len(prompt_s), len(token_s))
    return Measured(tuple(prompt_s[:count]), tuple(token_s[:count])) if count else "no tokens"


def _of_answers(space: Space, _: Choice, ended: Sequence[Mapping[str, Any]]) -> Measured | str:
    timings = ended[0]["answers"][1:]  # the first one warms up
    tokens = space.service.workload.prompt_tokens
    try:
        prompt_s = tuple(each["prompt_ms"] / 1000 * tokens / each["prompt_n"] for each in timings)
        token_s = tuple(each["predicted_ms"] / 1000 / each["predicted_n"] for each in timings)
    except (KeyError, TypeError, ZeroDivisionError):
        return "no tokens"
    return Measured(prompt_s, token_s) if timings else "no tokens"


def failure(ended: Mapping[str, Any]) -> str | None:
    """Why a run has no result, in one line; None where it ended well."""
    said = str(ended["said"])
    memory, refused = OUT_OF_MEMORY.search(said), REFUSED.search(said)
    if ended["why"] == "port":
        return said
    if ended["why"] == "late":
        return f"no result after {ended['elapsed_s']:.0f} s"
    if ended["status"] == 0:
        return None
    if memory:
        return f"out of memory: {memory[0].strip()[:160]}"
    if ended["status"] == -9:
        return "out of memory: the kernel killed it"
    if refused:
        return f"refused: {refused[0].strip()[:160]}"
    errors = [each["error"] for each in ended["answers"] if "error" in each]
    last = errors or [line.strip() for line in said.splitlines() if line.strip()] or ["it says nothing"]
    return f"ended with status {ended['status']}: {last[-1][:160]}"


def expected_s(space: Space, disk_gb_s: float | None) -> float:
    """How long a search takes in which everything is as the speed model predicts."""
    done: list[tuple[Probe, Outcome]] = []
    total_s = 0.0
    while isinstance(probe := follow(space, done), Probe):
        for run in runs(space, probe, len(done), "", disk_gb_s):
            total_s += START_S + load_s(space, disk_gb_s) + (run.timeout_s - _wait_s(space, disk_gb_s)) / PATIENCE
        done.append((probe, Outcome(tuple(_predicted(space, each) for each in probe.choices), 0.0)))
    return total_s


def _predicted(space: Space, choice: Choice) -> Measured:
    plan, workload = space.plan(choice), space.service.workload
    speed, load = Speed(space.node, space.constants or PUBLISHED), plan.placement.load
    prompt_s = speed.prompt_s(load, workload.prompt_tokens, space.prompts(plan, choice))
    return Measured((prompt_s,) * space.rounds, (speed.decode_s(load),) * space.rounds)
