"""What is written of a benchmark: the same figures everywhere, nothing private, nothing from elsewhere."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moehost import plots, report
from moehost.daily_use import Needs
from moehost.planner import place
from moehost.request import Request
from moehost.runs import Session
from moehost.summary import summarise
from tests.fixtures import published_runs
from tests.fixtures.benchmark import LENGTHS, THRESHOLD, simulated
from tests.unit.machines import epyc_9175f
from tests.unit.test_placement import QWEN, REPORT

SECRETS = ("alice", "nas", "10.1.2.3", "swordfish", "/srv/", "/home/")
NAMES = ["epyc7"]


def benchmark() -> Session:
    """A benchmark with every kind of run, an outlier, a plan, and things that are nobody's business."""
    made = list(simulated(3).runs)
    made[9] = replace(made[9], decode_s=1.5 * made[9].decode_s)
    lost = replace(made[12], kind="failed", reason="http://nas.home.arpa:80/: <script>alert(1)</script> | timed out")
    lost = replace(lost, prompt_s=0.0, decode_s=0.0, first_token_s=0.0, prompt_n=0, predicted_n=0)
    other = replace(made[13], kind="discarded", reason="prompt_n 99 is not 100 on epyc7 (10.1.2.3)")
    warm = replace(made[0], kind="warm_up")
    plan = {
        "model": {"name": "Qwen3.5-397B"},
        "argv": ["-m", "/srv/alice/q.gguf", "--api-key", "swordfish"],
        "prediction": {"prompt_tok_s": {"512": 112.0, "16384": 405.0}, "offload_tokens": THRESHOLD},
    }
    machine = {
        "cpu": {"model": "AMD EPYC 9175F", "cores": 16},
        "gpus": [{"name": "RTX PRO 6000"}],
        "log": "/home/alice/log",
    }
    return Session(simulated(3).order, machine, plan, (warm, *made[:13], lost, other, *made[13:]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(benchmark(), folder, names=NAMES)
    return folder


class Page(HTMLParser):
    """The tags of a page that are open at its end, its ids, and what its attributes name."""

    VOID = {"meta", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._note(attributes)

    def _note(self, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset"):
                self.named.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class TestFolder:
    def test_what_is_there(self, folder: Path) -> None:
        there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        pictures = [f"plots/{name}.{kind}" for name in ("decode", "prompt", "time") for kind in ("png", "svg")]
        assert there == [*pictures, "report.html", "report.md", "summary.json"]

    @pytest.mark.parametrize(
        "name", ["report.html", "report.md", "summary.json", "plots/prompt.svg", "plots/time.svg"]
    )
    def test_nothing_is_private(self, folder: Path, name: str) -> None:
        text = (folder / name).read_text()
        assert [word for word in (*SECRETS, *NAMES) if word in text] == []

    def test_the_pictures(self, folder: Path) -> None:
        for name in ("prompt", "decode", "time"):
            assert (folder / f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")
            ElementTree.parse(folder / f"plots/{name}.svg")
        prompt = (folder / "plots/prompt.svg").read_text()
        assert "predicted" in prompt and "from 1,639 tokens on" in prompt
        assert "outlier" in (folder / "plots/decode.svg").read_text()

    def test_the_same_runs_give_the_same_files(self, folder: Path, tmp_path: Path) -> None:
        report.write(benchmark(), tmp_path, names=NAMES)
        for path in folder.rglob("*.*"):
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path

    def test_the_summary(self, folder: Path) -> None:
        found = json.loads((folder / "summary.json").read_text())
        assert found["counts"] == {"measured": 28, "warm_up": 1, "discarded": 1, "failed": 1}
        assert [each["prompt_tokens"] for each in found["lengths"]] == list(LENGTHS)
        assert found["decode_slope"]["per_1k"] == pytest.approx(-0.1, abs=0.1)
        assert len(found["prompt_time"]) == 2
        assert (found["model"], found["argv"]) == ("Qwen3.5-397B", ["-m", "q.gguf", "--api-key", "<secret>"])
        # By the place in runs.jsonl: the warm-up comes before it.
        assert {"run": 10, "rate": "decode_tok_s"}.items() <= found["outliers"][0].items()
        assert found["daily_use"]["verdict"] == "fast enough"
        assert found["daily_use"]["needs"] == {
            "decode_tok_s": 10.0,
            "first_token_1k_s": 10.0,
            "first_token_16k_s": 60.0,
        }


class TestPage:
    def test_it_is_one_file_without_scripts(self, folder: Path) -> None:
        text = (folder / "report.html").read_text()
        page = Page(text)
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))
        assert "script" not in page.tags
        assert [each for each in page.named if not each.startswith("#") and each != "data:,"] == []
        assert {each.removeprefix("#") for each in page.named} - {"data:,"} <= set(page.ids)
        assert re.findall(r"url\((?!#)[^)]*\)|@import", text) == []

    def test_what_a_server_says_is_text(self, folder: Path) -> None:
        text = (folder / "report.html").read_text()
        assert "&lt;script&gt;alert(1)&lt;/script&gt; | timed out" in text
        assert "failed; http://&lt;host&gt;:80/" in text and "discarded; prompt_n 99 is not 100" in text

    def test_colours_of_the_pictures_are_the_pages(self, folder: Path) -> None:
        text = (folder / "report.html").read_text()
        in_pictures = "".join(re.findall(r"<svg role.*?</svg>", text, re.DOTALL))
        assert set(re.findall(r"#[0-9a-f]{6}\b", in_pictures)) == set()
        assert "var(--blue)" in in_pictures

    def test_every_run_and_its_remark(self, folder: Path) -> None:
        text = (folder / "report.html").read_text()
        rows = text[text.index('id="runs"') :].count("<tr")
        assert rows == 1 + 31
        assert "outlier: decode" in text and "warm-up" in text
        assert "28 measured, 1 for warming up, 1 discarded, 1 failed" in text

    @pytest.mark.parametrize(
        ("needs", "says"),
        [
            (Needs(), "Daily use: fast enough"),
            (Needs(decode_tok_s=50), "Daily use: too slow"),
            (Needs(None, None, None), None),
        ],
    )
    def test_the_verdict(self, needs: Needs, says: str | None) -> None:
        text = report.page(summarise(benchmark(), needs), {})
        assert (says in text) if says else ("Daily use" not in text)


class TestMarkdown:
    def test_the_table_of_the_published_report(self) -> None:
        assert report.runs_table(published_runs.RUNS.items())[2:] == [
            "| 1 | 4,699 | 314.22 | 21.95 |",
            "| 3 | 1,125 | 161.67 | 20.81 |",
            "| 8 | 1,124 | 154.76 | 23.82 |",
            "| 14 | 15,866 | 372.24 | 22.98 |",
            "| 16 | 550 | 117.78 | 22.91 |",
        ]

    def test_tables_and_texts(self, folder: Path) -> None:
        text = (folder / "report.md").read_text()
        assert text.startswith("# Qwen3.5-397B: 28 runs\n\nMeasured 2027-01-15 08:00 UTC")
        runs = text[text.index("## Run by run") : text.index("## Runs that do not count")]
        assert re.findall(r"^\| (\d+) \|", runs, re.MULTILINE) == [str(number) for number in range(1, 29)]
        assert "failed: http://\\<host\\>:80/: \\<script\\>alert(1)\\</script\\> \\| timed out" in text
        assert "- cpu model: AMD EPYC 9175F\n- cpu cores: 16\n- gpus 0 name: RTX PRO 6000" in text
        assert "llama-server -m q.gguf --api-key <secret>" in text
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({row.count("|") for row in table.splitlines()}) == 1


class TestSentences:
    def test_what_is_seen_and_what_is_not(self) -> None:
        quiet = {"noise": 0.001, "block_noise": 0.0}
        said = " ".join(report.findings(summarise(simulated(1, **quiet, drift=-0.1))))
        assert "The decode speed changed over the runs: -10." in said
        said = " ".join(report.findings(summarise(simulated(1, **quiet))))
        assert "The decode speed falls from 550 to 16,000 tokens of context: -6.9%" in said
        assert "shows no drift" in said
        assert "A prompt of 550 to 16,000 tokens takes" in said
        said = " ".join(report.findings(summarise(simulated(1, noise=0.1))))
        assert "The decode speed shows no clear trend from 550 to 16,000 tokens" in said
        said = " ".join(report.findings(summarise(simulated(1, lengths=(550, 1100, 1600), noise=0.01))))
        assert "The decode speed is stable from 550 to 1,600 tokens" in said


def test_a_benchmark_that_measured_nothing(tmp_path: Path) -> None:
    failed = tuple(replace(run, kind="failed", reason="refused") for run in simulated().runs[:2])
    report.write(Session({}, runs=failed), tmp_path)
    assert report.page(summarise(Session({})), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plots", "report.html", "report.md", "summary.json"]
    assert "0 runs were measured, 0 discarded and 2 failed" in (tmp_path / "report.html").read_text()


def test_one_run_has_no_intervals() -> None:
    summary = summarise(replace(simulated(), runs=simulated().runs[:1]))
    assert summary.to_json()["lengths"][0]["prompt_tok_s"]["interval"] is None
    drawn = {name: plots.svg(figure) for name, figure in plots.draw(summary).items()}
    assert "[" not in report.page(summary, drawn).partition('id="lengths"')[2].partition("</tbody>")[0]


def test_the_threshold_is_the_planners() -> None:
    plans = {
        512: place(QWEN, epyc_9175f(1), REPORT),
        1639: place(QWEN, epyc_9175f(1), Request("cpu-moe", context=8192, ubatch=2048)),
    }
    for tokens, placement in plans.items():
        assert summarise(replace(simulated(), plan=placement.to_json("ik", []))).threshold == tokens
    never = [
        place(QWEN, epyc_9175f(1), Request("cpu-moe", context=8192, ubatch=1024)),
        place(QWEN, epyc_9175f(0), REPORT),
    ]
    for placement in never:
        assert summarise(replace(simulated(), plan=placement.to_json("ik", []))).threshold is None


def test_a_plan_from_before_thresholds_were_told() -> None:
    plan = {"model": {"name": "m"}, "prediction": {"prompt_tok_s": {"512": 100.0}}}
    assert summarise(replace(simulated(), plan=plan)).threshold is None
