"""What an owner is told of a search, and what programs get."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moehost import settings, show_tune
from moehost.plan import make
from moehost.space import Space
from tests.fixtures.simulated_node import SimulatedNode
from tests.unit.test_tune import node, space


@pytest.mark.parametrize("cards", [0, 1])
def test_what_is_printed_and_what_programs_get_agree(cards: int, capsys: pytest.CaptureFixture[str]) -> None:
    simulated = node(cards, q8_gain=0.2)
    done, end = simulated.searched()
    data = json.loads(json.dumps(show_tune.result(simulated.space, done, end)))
    show_tune.show(simulated.space, done, end, Path("results/x"))
    printed = capsys.readouterr().out
    for key, value in data["settings"].items():
        assert f'"{key}": {json.dumps(value)},' in printed
    assert data["is_changed"] and data["settings"]["kv_type"] == "q8_0"
    assert f"{data['probes'][0]['answer_s']:.2f}" in printed


def test_the_printed_settings_lead_to_the_plan_that_was_measured() -> None:
    simulated = node(1, q8_gain=0.2)
    _, end = simulated.searched()
    assert end.best is not None
    made, wish = simulated.space, {"name": "q", "model": {"name": "q", "source": "file:///q.gguf"}, "context": 32768}
    service = settings.read({"services": [wish | end.best.settings(made.service)]}).services[0]
    again = make(service, made.model_path, made.found, made.node, made.dialect)
    assert again.arguments == made.plan(end.best).arguments


def test_a_configuration_that_stays_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    simulated = node(0, best_threads=space(0).current.threads)
    simulated.space = replace(space(0), branches=("threads",))
    done, end = simulated.searched()
    show_tune.show(simulated.space, done, end, Path("x"))
    assert "# the configuration as it is" in capsys.readouterr().out


def test_a_failure_is_told_with_its_reason() -> None:
    simulated = node(1, most_layers=-1)
    (_, (probe, outcome), *_), _ = simulated.searched()
    assert all("out of memory: simulated" in line for line in show_tune.told(simulated.space, 2, probe, outcome))


def test_a_fit_has_no_row() -> None:
    simulated: SimulatedNode = node(1)
    made: Space = simulated.space
    (probe, outcome), *_ = simulated.searched()[0]
    assert probe.kind == "fit"
    assert list(show_tune.told(made, 1, probe, outcome)) == []
