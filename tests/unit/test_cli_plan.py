"""`moehost plan` and `moehost calibrate` as an owner calls them: contract, exit codes, one line for a mistake."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moehost import synthetic
from moehost.cli import main
from moehost.engine import known_flags, unknown_flags
from tests.fixtures.http_server import FileHost, Hub
from tests.unit.full_size import qwen35_397b, write
from tests.unit.machines import epyc_9175f

HELP = Path(__file__).parents[1] / "fixtures/help"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the full model's header and machines with no, one and two cards."""
    path = tmp_path_factory.mktemp("plan")
    write(path / "model.gguf", qwen35_397b())
    for cards in range(3):
        (path / f"node{cards}.json").write_text(json.dumps(epyc_9175f(cards).to_json()))
    return path


def plan(folder: Path, *arguments: str, node: str = "node1.json") -> Result:
    command = ["plan", "--model", str(folder / "model.gguf"), "--node", str(folder / node), *arguments]
    return CliRunner().invoke(main, command)


def planned(folder: Path, *arguments: str, node: str = "node1.json") -> dict[str, Any]:
    result = plan(folder, *arguments, "--json", node=node)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_the_contract(folder: Path) -> None:
    made = planned(folder, "--context", "262144", "--ubatch", "2048")
    assert set(made) >= {"engine", "argv", "env", "experts", "ledger", "prediction", "warnings"}
    assert made["engine"] == "ik"
    assert made["argv"][:2] == ["-m", str(folder / "model.gguf")]
    assert {device: len(layers) for device, layers in made["experts"].items()} == {"CUDA0": 21, "CPU": 39}
    gpu, cpu = made["ledger"]
    parts = ("dense_mib", "experts_mib", "kv_mib", "state_mib", "compute_mib", "margin_mib", "free_mib")
    assert set(gpu) == {"device", "capacity_mib", *parts}
    assert sum(gpu[part] for part in parts) == gpu["capacity_mib"]
    assert set(cpu) == {"device", "capacity_mib", "dense_mib", "experts_mib", "cache_mib", "free_mib"}
    prediction = made["prediction"]
    assert 23.9 <= prediction["decode_low"] < prediction["decode_tok_s"] < prediction["decode_high"] <= 25.2
    assert list(prediction["prompt_tok_s"]) == ["512", "4096", "16384"]


@pytest.mark.parametrize(("engine", "text"), [("ik", "ik_llama.cpp-8337e4cd-cpu"), ("llama.cpp", "llama.cpp-0.7.0")])
def test_the_command_line_passes_the_contract_of_its_engine(folder: Path, engine: str, text: str) -> None:
    help_text = (HELP / f"{text}.txt").read_text()
    argv = planned(folder, "--engine", engine, node="node2.json")["argv"]
    unknown = unknown_flags(argv, help_text, engine)  # type: ignore[arg-type]
    # ik_llama.cpp built without CUDA does not list what needs it; these are in the table of its source.
    gpu_only = {"-ngl", "-sm", "-ts"} if engine == "ik" else set()
    assert {line.split()[0] for line in unknown} == gpu_only
    assert known_flags(help_text)


def test_a_full_plan_takes_less_than_a_second_and_a_half(folder: Path) -> None:
    started = time.monotonic()
    planned(folder, node="node2.json")
    assert time.monotonic() - started < 1.5


def test_what_does_not_fit_ends_with_3_and_says_what_would(folder: Path) -> None:
    result = plan(folder, "--context", "16777216")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("moehost: CUDA0 lacks ")
    assert "it fits with" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--kv-type", "q9"], "--kv-type: 'q9' is not one of"),
        (["--context", "1"], "--context: 1: input should be greater than or equal to 512"),
        (["--workload", "many"], "--workload: 'many' is not PROMPT,ANSWER; write e.g. 4096,512"),
        (["--compare", "auto,best"], "--compare: 'best' is not one of auto, cpu-moe, tensor-split, manual"),
        (["--rule", "blk=CPU"], "rules: belongs to placement manual and to no other; leave it out"),
        (["--placement", "manual", "--rule", r"blk\.1=CPU"], "rule 'blk\\\\.1=CPU': cannot have"),
        (["--placement", "tensor-split", "--gpu-experts", "5-1"], "'5-1': write layers as 0-12,47"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, arguments: list[str], line: str) -> None:
    result = plan(folder, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert line in result.stderr
    assert result.stderr.count("\n") == 1


def test_files_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("{")
    (tmp_path / "half.json").write_text('{"cpu": {}}')
    for node, line in (("text", "is no JSON"), ("half.json", "node.cpu.sockets: is missing")):
        result = plan(folder, "--node", str(tmp_path / node))
        assert (result.exit_code, line in result.stderr) == (2, True), result.stderr
    result = plan(folder, "--model", str(tmp_path / "text"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_the_table_says_what_where_and_why(folder: Path) -> None:
    text = plan(folder, "--context", "262144", "--explain").stdout
    assert "experts on CUDA0: 0-20 (21 layers)" in text
    assert "predicted decode: 24.7 tok/s (between 23.9 and 25.2)" in text
    assert "why: 21 of 60 layers of experts on the GPUs: all that fit" in text
    assert "routed experts, whole layers of gate, up and down" in text
    assert "█" in text


def test_placements_side_by_side(folder: Path) -> None:
    both = planned(folder, "--context", "262144", "--compare", "cpu-moe,auto")
    assert both["cpu-moe"]["prediction"]["decode_tok_s"] == 22.5
    assert both["auto"]["prediction"]["decode_tok_s"] > 24
    text = plan(folder, "--context", "262144", "--compare", "cpu-moe,auto").stdout
    assert "predicted, not measured" in text
    assert "22.5 (" in text


def test_side_by_side_layers_belong_to_the_placement_that_takes_them(folder: Path) -> None:
    layers = ["--gpu-experts", "0-12", "--gpu-experts", "47-59"]
    made = planned(folder, "--compare", "cpu-moe,auto,tensor-split", *layers, node="node2.json")
    counts = {name: [len(made[name]["experts"][f"CUDA{n}"]) for n in range(2)] for name in made}
    assert counts["cpu-moe"] == [0, 0]
    assert counts["tensor-split"] == [13, 13]
    assert min(counts["auto"]) > 13


def test_a_model_is_planned_before_it_is_fetched(folder: Path, tmp_path: Path) -> None:
    written = synthetic.write(tmp_path / "split.gguf", synthetic.Shape(shards=3))
    (tmp_path / "token").write_text("secret\n")
    files = {f"tiny/{path.name}": path.read_bytes() for path in written}
    revision = "0123456789abcdef" * 2 + "01234567"
    with FileHost({}) as storage, Hub(storage, files, revision, "secret") as hub:
        address = f"hf://OWNER/REPO/tiny@{revision}"
        options = ["--hf-endpoint", hub.url, "--hf-token-file", str(tmp_path / "token"), "--json"]
        result = plan(folder, "--model", address, *options)
        assert result.exit_code == 0, result.stderr
        assert sorted(json.loads(result.stdout)["experts"]["CUDA0"]) == [0, 1, 2, 3]
        # The headers alone went over the line, and the token to nobody else.
        assert storage.sent_bytes < sum(map(len, files.values()))
        assert all("Authorization" not in request.headers for request in storage.requests)

        result = plan(folder, "--model", f"hf://OWNER/REPO/none@{revision}", *options)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_measurements_replace_published_constants(folder: Path, tmp_path: Path) -> None:
    points = [
        {"experts": {"CPU": list(range(60))}, "ubatch": 2048, "decode_tok_s": 26.0, "prompt_tok_s": {"4096": 400}},
        {"experts": {"CUDA0": list(range(20)), "CPU": list(range(20, 60))}, "ubatch": 2048, "decode_tok_s": 31.0},
    ]
    (tmp_path / "points.json").write_text(json.dumps(points))
    files = ["--model", str(folder / "model.gguf"), "--node", str(folder / "node1.json")]
    result = CliRunner().invoke(main, ["calibrate", str(tmp_path / "points.json"), *files])
    assert result.exit_code == 0, result.stderr
    (tmp_path / "constants.json").write_text(result.stdout)
    arguments = ["--placement", "cpu-moe", "--ubatch", "2048", "--calibration", str(tmp_path / "constants.json")]
    assert planned(folder, *arguments)["prediction"]["decode_tok_s"] == pytest.approx(26.0, abs=0.2)

    (tmp_path / "points.json").write_text(json.dumps(points[:1]))
    result = CliRunner().invoke(main, ["calibrate", str(tmp_path / "points.json"), *files])
    assert result.exit_code == 2
    assert "give two or more" in result.stderr


@pytest.mark.parametrize(
    "command", [["plan"], ["calibrate"], ["check-inventory"], ["sandbox", "ask"], ["tiny-model"]]
)
def test_help_has_an_example(command: list[str]) -> None:
    assert "Example:" in CliRunner().invoke(main, [*command, "--help"]).stdout


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """A machine that holds half of the model."""
    path = folder / "small.json"
    path.write_text(json.dumps(epyc_9175f(1, 131072).to_json()))
    return path


class TestWorkers:
    """Nodes that may hold layers, at a desk."""

    def test_the_ledger_has_the_workers_devices(self, folder: Path, small: Path) -> None:
        made = planned(folder, "--placement", "rpc", "--rpc", str(folder / "node2.json"), node=small.name)
        assert [row["device"] for row in made["ledger"]] == ["CUDA0", "RPC0", "RPC1", "CPU"]
        assert made["argv"][made["argv"].index("--rpc") + 1] == "10.0.0.2:50052"
        assert made["experts"]["RPC0"]

    def test_auto_says_that_workers_would_do(self, folder: Path, small: Path) -> None:
        result = plan(folder, "--rpc", str(folder / "node1.json"), node=small.name)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "it fits with placement rpc" in result.stderr

    def test_both_side_by_side(self, folder: Path) -> None:
        words = ("--compare", "auto,rpc", "--rpc", str(folder / "node0.json"), "--link", "1GbE")
        made = planned(folder, *words)
        assert set(made) == {"auto", "rpc"}
        assert made["rpc"]["prediction"]["decode_tok_s"] < made["auto"]["prediction"]["decode_tok_s"]
        assert any("take placement auto" in each for each in made["rpc"]["warnings"])
        shown = plan(folder, *words)
        assert "RPC0: layers of experts" in shown.stdout

    def test_a_measured_link_counts(self, folder: Path) -> None:
        words = ("--placement", "rpc", "--rpc", str(folder / "node0.json"), "--ubatch", "2048")
        fast, slow = (
            planned(folder, *words, "--link-gb-s", "2.5", "--latency-us", latency)["prediction"]["decode_tok_s"]
            for latency in ("50", "20000")
        )
        assert slow < fast

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--placement", "rpc"], "--placement rpc needs workers; name them with --rpc"),
            (["--rpc", "nowhere.json"], "nowhere.json"),
            (["--placement", "rpc", "--rpc", "node0.json", "--worker-memory", "cards"], "rpc: node0 has no card"),
            (["--placement", "rpc", "--rpc", "node0.json", "--rpc", "node0.json"], "a host is named twice"),
            (["--placement", "rpc", "--rpc", "node0.json", "--latency-us", "-1"], "--rpc: latency_us: -1.0"),
            (["--placement", "rpc", "--rpc", "node0.json", "--verify", "@epyc"], "--verify: needs the workers"),
        ],
    )
    def test_a_mistake_is_one_line(self, folder: Path, words: list[str], said: str) -> None:
        result = plan(folder, *(str(folder / word) if word.startswith("node") else word for word in words))
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert said in line
