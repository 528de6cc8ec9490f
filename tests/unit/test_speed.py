"""Predictions against published runs, and constants refitted to measurements."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from moehost import calibration
from moehost.calibration import CalibrationError, Point, calibrate, read_points
from moehost.hardware import Node
from moehost.model import Model
from moehost.speed import PUBLISHED, Constants, Load, Prompts, Speed, threshold_tokens
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import epyc_9175f

QWEN = Model.from_gguf(as_set(qwen35_397b()))
NODE = epyc_9175f(1)
THRESHOLD = threshold_tokens(QWEN, "ik")
REPORT = Prompts(ubatch=2048, threshold=THRESHOLD, threads=24)


def load(resident: int, model: Model = QWEN) -> Load:
    """The first layers' experts on one GPU, the others on the CPU."""
    experts = {index: "CUDA0" if index < resident else "CPU" for index in model.expert_layers}
    return Load.of(model, 1, ["CUDA0"] * (len(model.layers) + 1), experts)


class TestDecode:
    def test_the_published_run_with_all_experts_on_the_cpu(self) -> None:
        predicted = Speed(NODE).decode(load(0), Speed(NODE).spread(QWEN))
        assert predicted.expected == pytest.approx(22.5, abs=0.05)
        assert predicted.low == pytest.approx(22.05, abs=0.05) and predicted.high == pytest.approx(22.95, abs=0.05)

    @pytest.mark.parametrize(("resident", "expected"), [(21, 24.7), (26, 25.3), (46, 27.9)])
    def test_layers_moved_to_the_gpu(self, resident: int, expected: float) -> None:
        assert Speed(NODE).decode(load(resident), 0.02).expected == pytest.approx(expected, abs=0.1)

    def test_a_layer_saves_what_was_measured_on_the_same_machine(self) -> None:
        speed = Speed(NODE)
        glm_51 = 8 * 3 * 6144 * 2048 * 3.56 / 8
        assert 0.20e-3 < speed.saving_s(0, glm_51) < 0.33e-3
        glm_47_flash = 4 * 3 * 2048 * 1536 * 5.5 / 8
        assert speed.saving_s(0, glm_47_flash) == pytest.approx(0.107e-3, rel=0.1)

    def test_the_range_widens_where_the_machine_is_another(self) -> None:
        other = dataclasses.replace(NODE, cpu=dataclasses.replace(NODE.cpu, model="AMD EPYC 7713"))
        assert Speed(NODE).spread(QWEN) == 0.02
        assert Speed(other).spread(QWEN) == 0.15
        assert Speed(epyc_9175f(0)).spread(QWEN) == 0.35
        assert Speed(other).decode(load(0), 0.15).low < Speed(other).decode(load(0), 0.02).low

    def test_a_slow_card_saves_nothing(self) -> None:
        slow = dataclasses.replace(NODE, gpus=(dataclasses.replace(NODE.gpus[0], bandwidth_gb_s=200.0),))
        assert Speed(slow).saving_s(0, 70.8e6) < 0
        predicted = Speed(slow).decode(load(10), 0.02)
        assert predicted.low <= predicted.expected <= predicted.high

    def test_without_a_gpu_everything_is_read_from_ram(self) -> None:
        experts = dict.fromkeys(QWEN.expert_layers, "CPU")
        predicted = Speed(epyc_9175f(0)).decode(Load.of(QWEN, 0, ["CPU"] * 61, experts), 0.35)
        assert 8 < predicted.low < predicted.expected < 15


class TestPrompts:
    @pytest.mark.parametrize(
        ("tokens", "tok_s"), [(550, 117.78), (1124, 154.76), (1125, 161.67), (4699, 314.22), (15866, 372.24)]
    )
    def test_the_five_published_prompts(self, tokens: int, tok_s: float) -> None:
        assert tokens / Speed(NODE).prompt_s(load(0), tokens, REPORT) == pytest.approx(tok_s, rel=0.05)

    def test_the_threshold_of_each_engine(self) -> None:
        assert threshold_tokens(QWEN, "ik") == 1639
        assert threshold_tokens(QWEN, "ik", 10) == 512
        assert threshold_tokens(QWEN, "llama.cpp") == 32

    def test_the_break_even_is_where_both_ways_take_as_long(self) -> None:
        speed = Speed(NODE)
        even = speed.break_even_tokens(load(0), 24)
        assert even is not None and 450 < even < 520
        on_cpu = speed.prompt_s(load(0), even, Prompts(2048, even + 1, 24))
        on_gpu = speed.prompt_s(load(0), even, Prompts(2048, even, 24))
        assert on_cpu == pytest.approx(on_gpu, rel=0.01)
        assert speed.break_even_tokens(load(60), 24) is None

    def test_larger_chunks_and_resident_layers_help(self) -> None:
        speed = Speed(NODE)
        rates = [16384 / speed.prompt_s(load(0), 16384, Prompts(u, THRESHOLD, 16)) for u in (2048, 4096, 8192)]
        assert rates == sorted(rates) and 380 < rates[0] < 440 and 1000 < rates[2] < 1200
        assert 550 < 2048 / speed.prompt_s(load(22), 2048, REPORT) < 650

    def test_more_threads_than_cores_do_not_help(self) -> None:
        speed = Speed(NODE)
        assert speed.prompt_s(load(0), 500, Prompts(512, THRESHOLD, 32)) == speed.prompt_s(
            load(0), 500, Prompts(512, THRESHOLD, 16)
        )


def measured(node: Node, truth: Constants, residents: tuple[int, ...], tokens: tuple[int, ...] = ()) -> list[Point]:
    """What would be measured if `truth` held."""
    speed = Speed(node, truth)
    return [
        Point(
            load(resident),
            1 / speed.decode_s(load(resident)),
            REPORT,
            tuple((length, speed.prompt_s(load(resident), length, REPORT)) for length in tokens),
        )
        for resident in residents
    ]


class TestCalibration:
    TRUTH = dataclasses.replace(PUBLISHED, cpu_share=0.4, attention_s=0.08e-3, recurrent_s=0.386e-3 * 2 / 3)

    def test_two_points_find_bandwidth_and_overhead(self) -> None:
        fitted = calibrate(NODE, measured(NODE, self.TRUTH, (0, 21)))
        assert fitted.cpu_share == pytest.approx(0.4, rel=1e-6)
        assert fitted.recurrent_s == pytest.approx(self.TRUTH.recurrent_s, rel=1e-6)
        for resident in (0, 10, 21, 40):
            expected = Speed(NODE, self.TRUTH).decode_s(load(resident))
            assert Speed(NODE, fitted).decode_s(load(resident)) == pytest.approx(expected)
        assert fitted.spread == 0.02 and "2 measured points" in fitted.source

    def test_points_with_the_same_experts_fit_the_overhead_alone(self) -> None:
        points = measured(NODE, self.TRUTH, (21, 21))
        fitted = calibrate(NODE, points)
        assert fitted.cpu_share == PUBLISHED.cpu_share
        assert 1 / Speed(NODE, fitted).decode_s(load(21)) == pytest.approx(points[0].decode_tok_s)

    def test_prompts_find_a_factor_below_and_above_the_threshold(self) -> None:
        truth = dataclasses.replace(PUBLISHED, prompt_cpu_factor=1.3, prompt_gpu_factor=0.8)
        points = measured(NODE, truth, (0, 21), (600, 1200, 4096, 8192))
        fitted = calibrate(NODE, points)
        for tokens in (600, 4096):
            expected = Speed(NODE, truth).prompt_s(load(0), tokens, REPORT)
            assert Speed(NODE, fitted).prompt_s(load(0), tokens, REPORT) == pytest.approx(expected, rel=0.06)

    def test_scattered_points_widen_the_range(self) -> None:
        points = measured(NODE, self.TRUTH, (0, 10, 21))
        points[1] = dataclasses.replace(points[1], decode_tok_s=points[1].decode_tok_s * 1.2)
        assert calibrate(NODE, points).spread > 0.05

    def test_one_point_is_too_few(self) -> None:
        with pytest.raises(CalibrationError, match="1 measured point"):
            calibrate(NODE, measured(NODE, self.TRUTH, (0,)))

    def test_points_that_contradict_each_other_are_refused(self) -> None:
        slow, fast = measured(NODE, self.TRUTH, (0, 30))
        points = [
            dataclasses.replace(slow, decode_tok_s=fast.decode_tok_s),
            dataclasses.replace(fast, decode_tok_s=slow.decode_tok_s / 2),
        ]
        with pytest.raises(CalibrationError, match="contradict"):
            calibrate(NODE, points)

    def test_constants_go_through_json(self) -> None:
        assert calibration.from_json(json.loads(json.dumps(calibration.to_json(PUBLISHED)))) == PUBLISHED
        with pytest.raises(CalibrationError, match="calibrate again"):
            calibration.from_json({"cpu_share": "much"})


class TestPointFiles:
    ENTRY = {
        "experts": {"CUDA0": list(range(21)), "CPU": list(range(21, 60))},
        "ubatch": 2048,
        "decode_tok_s": 24.7,
        "prompt_tok_s": {"4096": 600},
    }

    def test_a_plans_experts_make_a_point(self) -> None:
        (point,) = read_points([self.ENTRY], QWEN, NODE, "ik")
        assert point.load == load(21)
        assert point.prompts == Prompts(2048, 1639, 16)
        assert point.prompt_s == ((4096, 4096 / 600),)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ubatch": "x"}, "point 0: cannot be read"),
            ({"decode_tok_s": 0}, "point 0: has a value that is not above 0"),
            ({"prompt_tok_s": {"512": float("nan")}}, "point 0: has a value that is not above 0"),
            ({"experts": {"CPU": [1, 2]}}, "point 0: experts must name each expert layer"),
            ({"experts": {"CUDA7": list(range(60))}}, "point 0: experts must name each expert layer"),
        ],
    )
    def test_what_is_wrong_is_named(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(CalibrationError, match=message):
            read_points([self.ENTRY | change], QWEN, NODE, "ik")

    def test_a_file_without_points_is_refused(self) -> None:
        with pytest.raises(CalibrationError, match="no list of points"):
            read_points({}, QWEN, NODE, "ik")
