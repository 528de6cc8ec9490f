"""The ledger against a real ik_llama.cpp: true headers, sparse data, `--dry-run`, on a machine without a GPU.

Needs IK_LLAMA_BUILD, the folder that it was built in. The models are larger than the memory of most machines, so the
kernel must overcommit: the test sets that, as root, and restores it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moehost import dry_run, gguf, rehearsal, rehearse
from moehost.dry_run import Buffers, Difference
from moehost.engine import offload_arguments
from moehost.ledger import Row
from moehost.model import Model
from moehost.planner import place
from moehost.request import Request
from tests.unit import architectures as published
from tests.unit.architectures import Shape
from tests.unit.full_size import Layout, qwen35_397b, write, write_split
from tests.unit.machines import epyc_9175f

SOURCE = Path(__file__).parents[2] / "src"


BUILD = os.environ.get("IK_LLAMA_BUILD")
ENGINE = Path(BUILD, "bin/llama-server") if BUILD else None
pytestmark = pytest.mark.skipif(ENGINE is None, reason="IK_LLAMA_BUILD is not set")


def loadable(shape: Shape) -> Layout:
    """The layout with what planning needs not, but the engine does: norms of heads, widths, a vocabulary."""
    layout, key = shape.layout(), f"{shape.architecture}."
    layout.metadata |= {
        key + "feed_forward_length": shape.ff or shape.expert_ff,
        key + "rope.dimension_count": shape.head,
        key + "rope.freq_base": 1e6,
        key + "attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
    }
    if shape.experts:
        layout.metadata[key + "expert_feed_forward_length"] = shape.expert_ff
    if shape.architecture.startswith("qwen3"):
        norms = [(index, part) for index in range(shape.layers) for part in ("attn_q_norm", "attn_k_norm")]
        layout.rows += [(f"blk.{index}.{part}.weight", (shape.head,), "F32") for index, part in norms]
    layout.vocabulary = shape.vocabulary
    return layout


# Contexts are short where no GPU takes the KV cache: the engine clears it, which takes real memory.
MODELS = {
    "qwen35moe-397b": (qwen35_397b(), 32768),
    "qwen3moe-235b": (loadable(published.QWEN3_235B), 8192),
    "llama-70b": (loadable(published.LLAMA3_70B), 8192),
}


@pytest.fixture(autouse=True)
def _overcommit() -> Iterator[None]:
    if os.geteuid() != 0 or not os.access(rehearse.OVERCOMMIT, os.W_OK):
        if rehearse.OVERCOMMIT.read_text().strip() != "1":
            pytest.skip("vm.overcommit_memory is not 1, and may not be set without root")
        yield
        return
    with rehearse.overcommitting():
        yield


def rehearsed(paths: list[Path], folder: Path, request: Request, *more: str) -> tuple[tuple[Row, ...], Buffers]:
    """The ledger of a plan for a machine without a GPU, and what the engine allocates for it."""
    found = gguf.read_set(paths)
    placement = place(Model.from_gguf(found), epyc_9175f(0), request)
    headers = folder / "headers.bin"
    headers.write_bytes(b"".join(gguf.read_heads(found)))
    for path in paths:  # the engine must get what is written anew
        path.unlink()
    argv = ("-m", paths[0].name, "--host", "0.0.0.0", "--port", "8080")
    argv += (*offload_arguments(placement.offload, "ik"), *more)
    job = rehearsal.Job(
        str(ENGINE), argv, placement.env, rehearsal.shards(found), str(headers), str(folder), timeout_s=120
    )
    (folder / "job.json").write_text(job.to_json())
    done = subprocess.run(
        [sys.executable, "-m", "moehost.rehearse", folder / "job.json"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    result = rehearsal.Result.parse(done.stdout)
    assert (done.returncode, result.refusal) == (0, None), result.log[-2000:]
    assert sorted(path.name for path in folder.iterdir()) == ["headers.bin", "job.json"]
    return placement.rows, dry_run.parse(result.log)


def table(differences: list[Difference]) -> str:
    lines = [f"{d.device:4} {d.what:9} {d.ledger_mib:10.0f} {d.engine_mib:12} {d.per_cent}" for d in differences]
    return "\n".join(lines)


@pytest.mark.parametrize("ubatch", [512, 2048])
@pytest.mark.parametrize("name", MODELS)
def test_the_ledger_is_the_engines(name: str, ubatch: int, tmp_path: Path) -> None:
    """Weights, KV cache and state within 0.5 %, the compute buffer within 3 %."""
    layout, context = MODELS[name]
    path = write(tmp_path / "model.gguf", layout)
    rows, buffers = rehearsed([path], tmp_path, Request(context=context, ubatch=ubatch))
    differences = dry_run.compare(rows, buffers)
    print(f"\n{name}, ubatch {ubatch}:\n{table(differences)}")
    assert {d.what for d in differences} >= {"weights", "cache", "compute", "KV cache"}
    assert buffers.layers == int(layout.metadata[f"{layout.metadata['general.architecture']}.block_count"])
    assert [d for d in differences if not d.is_within] == []


def test_a_split_set_and_a_quantised_cache(tmp_path: Path) -> None:
    paths = write_split(tmp_path, qwen35_397b(), 4)
    request = Request(context=135168, ubatch=2048, kv_type_k="q8_0", kv_type_v="q8_0")
    rows, buffers = rehearsed(paths, tmp_path, request)
    assert buffers.kv_self_mib == 2103.75
    assert all(d.is_within for d in dry_run.compare(rows, buffers))


@pytest.mark.parametrize("ubatch", [512, 2048])
def test_multi_token_prediction_has_a_context_of_its_own(ubatch: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", qwen35_397b(mtp=True))
    request = Request(context=16384, ubatch=ubatch, mtp=True)
    rows, buffers = rehearsed([path], tmp_path, request, "--spec-type", "mtp")
    differences = dry_run.compare(rows, buffers)
    print(f"\n{table(differences)}")
    assert buffers.layers == 61 and buffers.kv_self_mib == 512 + 32
    assert all(d.is_within for d in differences)


def test_a_machine_smaller_than_the_model_is_told_how_to_check_all_the_same(tmp_path: Path) -> None:
    """The kernel's own refusal, and the job's answer to it."""
    if os.geteuid() != 0 or not os.access(rehearse.OVERCOMMIT, os.W_OK):
        pytest.skip("vm.overcommit_memory may not be set")
    found = gguf.read_set([write(tmp_path / "model.gguf", qwen35_397b())])
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > found.size_bytes:
        pytest.skip("this machine can hold the model")
    headers = tmp_path / "headers.bin"
    headers.write_bytes(b"".join(gguf.read_heads(found)))
    argv = ("-m", "model.gguf", "-c", "4096", "-ub", "512", "-t", "1", "-fa", "on", "--no-mmap")
    job = rehearsal.Job(str(ENGINE), argv, {}, rehearsal.shards(found), str(headers), str(tmp_path), 120)
    rehearse.OVERCOMMIT.write_text("0")
    refused = rehearse.run(job)
    assert refused.refusal and refused.refusal.startswith("the kernel grants no 217650 MiB at once")
    assert refused.status == 1
    assert rehearse.run(replace(job, overcommit=True)).refusal is None
    assert rehearse.OVERCOMMIT.read_text().strip() == "0"


def test_a_ledger_that_is_wrong_shows(tmp_path: Path) -> None:
    """The same comparison, for a plan of half the context: it must not agree."""
    layout, context = MODELS["qwen35moe-397b"]
    request = Request(context=context, ubatch=512)
    path = write(tmp_path / "model.gguf", layout)
    half = place(Model.from_gguf(gguf.read_set([path])), epyc_9175f(0), replace(request, context=context // 2))
    _, buffers = rehearsed([path], tmp_path, request)
    differing = [d for d in dry_run.compare(half.rows, buffers) if not d.is_within]
    assert {d.what for d in differing} == {"cache", "KV cache"}
