"""Layers on other nodes: the ledger's sums, what the engines are told, and a prediction that follows the link."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moehost import split
from moehost.engine import Dialect, offload_arguments, probe_arguments
from moehost.ledger import MIB, Memory
from moehost.model import Model
from moehost.placement import Placement
from moehost.planner import DoesNotFit, place
from moehost.request import PlacementError, Request
from moehost.worker import LINKS, Link, Worker
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import card, epyc_9175f, with_cards
from tests.unit.shared import worker

QWEN = Model.from_gguf(as_set(qwen35_397b()))
GOLDEN = Path(__file__).parents[1] / "fixtures/shared-plan.json"
# Half of what the model needs.
SMALL = 131072


def shared(*workers: Worker, cards: int = 1, memory_mib: int = SMALL, **more: Any) -> Placement:
    wish = Request(placement="rpc", workers=workers, context=131072, **more)
    return place(QWEN, epyc_9175f(cards, memory_mib), wish)


def values(placement: Placement, dialect: Dialect) -> dict[str, str]:
    """The flags of a placement with a value each."""
    words = offload_arguments(placement.offload, dialect)
    return {word: words[n + 1] for n, word in enumerate(words[:-1]) if word.startswith("-")}


def in_engine(placement: Placement, dialect: Dialect, count: int) -> list[str]:
    """The device of each layer, as the engine reads `-ngl`, `-dev` and `-ts` (docs/rpc.md)."""
    flags = values(placement, dialect)
    names, total = flags["-dev"].split(","), len(QWEN.layers)
    shares = [float(each) for each in flags["-ts"].split(",")] if "-ts" in flags else [1.0]
    away = min(int(flags["-ngl"]), total + 1)
    if dialect == "llama.cpp":
        start = total + 1 - away
        found = split.split_by_count(away - 1, shares)
    else:
        start = max(total - away, 0)
        memory = Memory(131072, dialect="ik")
        sizes, compute = split.layer_sizes(QWEN, memory, placement.offload.ubatch)
        found = split.split_by_bytes(sizes[start : start + away], compute, shares)
    return ["CPU"] * start + [names[index] for index in found][: total - start]


class TestLedger:
    @pytest.mark.parametrize("cards", [0, 1, 2])
    @pytest.mark.parametrize("dialect", ["ik", "llama.cpp"])
    def test_every_byte_is_on_one_device(self, cards: int, dialect: Dialect) -> None:
        placement = shared(worker(epyc_9175f(1)), worker(epyc_9175f(0), "epyc3", 3), cards=cards, dialect=dialect)
        weights = sum(row.dense_mib + row.experts_mib for row in placement.rows)
        assert weights == pytest.approx(QWEN.size_bytes / MIB, abs=2 * len(placement.rows))
        assert all(row.free_mib >= 0 for row in placement.rows)
        layers = sorted(layer for found in placement.experts.values() for layer in found)
        assert layers == list(QWEN.expert_layers)

    def test_rows_are_cards_workers_and_the_cpu(self) -> None:
        placement = shared(worker(epyc_9175f(2)), worker(epyc_9175f(0), "epyc3", 3))
        assert [row.device for row in placement.rows] == ["CUDA0", "RPC0", "RPC1", "RPC2", "CPU"]

    def test_a_worker_without_cards_lends_its_memory_but_for_what_it_needs_itself(self) -> None:
        placement = shared(worker(epyc_9175f(0, 65536)), cards=1)
        row = placement.rows[1]
        assert (row.device, row.capacity_mib, row.margin_mib, row.context_mib) == ("RPC0", 65536, 3276, 0)

    def test_whole_layers_go_with_their_cache_and_state(self) -> None:
        placement = shared(worker(epyc_9175f(1)))
        away = placement.experts["RPC0"]
        assert away == tuple(range(len(away)))
        assert all(placement.layer_devices[layer] == "RPC0" for layer in away)
        state = sum(QWEN.layers[layer].state_bytes for layer in away) / MIB
        assert placement.rows[1].state_mib == pytest.approx(state, abs=1)

    def test_what_fits_nowhere_says_which_device_lacks_how_much(self) -> None:
        with pytest.raises(DoesNotFit) as lack:
            shared(worker(with_cards(memory_mib=16384)), cards=0, memory_mib=16384)
        assert lack.value.lacking_mib > 0

    def test_auto_names_workers_that_would_do(self) -> None:
        wish = Request(workers=(worker(epyc_9175f(1)),), context=131072)
        with pytest.raises(DoesNotFit, match="it fits with placement rpc"):
            place(QWEN, epyc_9175f(1, SMALL), wish)

    def test_auto_takes_no_worker_where_it_fits_alone(self) -> None:
        node, wish = epyc_9175f(1), Request(context=131072)
        assert place(QWEN, node, replace(wish, workers=(worker(epyc_9175f(2)),))) == place(QWEN, node, wish)


class TestTold:
    @pytest.mark.parametrize("cards", [0, 1, 2])
    @pytest.mark.parametrize("dialect", ["ik", "llama.cpp"])
    @pytest.mark.parametrize("memory_mib", [40000, 98304])
    def test_the_engine_puts_each_layer_where_the_ledger_has_it(
        self, cards: int, dialect: Dialect, memory_mib: int
    ) -> None:
        workers = [worker(with_cards(card(), card(49152)), "epyc2", 2), worker(epyc_9175f(1), "epyc3", 3)]
        placement = shared(*workers, cards=cards, memory_mib=memory_mib, dialect=dialect)
        names = {"RPC0": "RPC0[10.0.0.2:50052]", "RPC1": "RPC1[10.0.0.2:50052]", "RPC2": "RPC0[10.0.0.3:50052]"}
        expected = [
            names.get(device, device) if dialect == "ik" else device for device in placement.layer_devices[:-1]
        ]
        assert in_engine(placement, dialect, cards) == expected
        assert len(set(expected)) > 1 + bool(cards)

    def test_workers_come_before_what_names_their_devices(self) -> None:
        words = offload_arguments(shared(worker(epyc_9175f(1)), dialect="llama.cpp").offload, "llama.cpp")
        assert words.index("--rpc") < words.index("-dev") < words.index("-ot")

    def test_without_cards_the_output_stays_here(self) -> None:
        placement = shared(worker(epyc_9175f(0)), cards=0, dialect="llama.cpp")
        assert placement.layer_devices[-1] == "CPU"
        assert values(placement, "llama.cpp")["-ot"] == "^(output|token_embd)=CPU"
        # ik_llama.cpp leaves it here where not all layers go.
        flags = values(shared(worker(epyc_9175f(0)), cards=0), "ik")
        assert int(flags["-ngl"]) <= len(QWEN.layers)
        assert "-ot" not in flags

    def test_experts_of_this_nodes_layers_alone_are_named(self) -> None:
        placement = shared(worker(epyc_9175f(0)))
        (rule,) = placement.offload.tensor_overrides
        assert rule.endswith("=CPU")
        assert not placement.offload.cpu_moe

    def test_a_probe_asks_no_worker(self) -> None:
        words = ["-m", "x", "--port", "1", *offload_arguments(shared(worker(epyc_9175f(1))).offload, "ik")]
        assert {"--rpc", "-dev"} & set(words)
        assert not {"--rpc", "-dev"} & set(probe_arguments(words))


class TestPrediction:
    @given(
        gb_s=st.floats(0.05, 10),
        latency_us=st.floats(10, 2000),
        more=st.floats(1, 20),
        cards=st.sampled_from([0, 1]),
    )
    @hypothesis_settings(max_examples=20, deadline=None)
    def test_a_slower_link_is_never_faster(self, gb_s: float, latency_us: float, more: float, cards: int) -> None:
        def of(link: Link) -> Placement:
            return shared(worker(epyc_9175f(0), link=link), cards=cards, ubatch=2048)

        here = of(Link(gb_s, latency_us * 1e-6))
        for worse in (Link(gb_s / more, latency_us * 1e-6), Link(gb_s, latency_us * 1e-6 * more)):
            there = of(worse)
            assert there.decode.expected <= here.decode.expected * (1 + 1e-9)
            assert there.prompt_tok_s[4096] <= here.prompt_tok_s[4096] * (1 + 1e-9)

    def test_each_crossing_costs_its_round_trip(self) -> None:
        fast, slow = (shared(worker(epyc_9175f(0), link=Link(1.0, s)), ubatch=2048) for s in (0.0, 1e-3))
        lost_s = 1 / slow.decode.expected - 1 / fast.decode.expected
        assert lost_s == pytest.approx(1e-3, rel=1e-6)

    def test_two_devices_are_two_crossings(self) -> None:
        one = shared(worker(epyc_9175f(0), link=Link(1.0, 1e-3)), cards=0, memory_mib=16384, ubatch=512)
        both = [worker(epyc_9175f(0, 100000), f"epyc{n}", n, Link(1.0, 1e-3)) for n in (2, 3, 4)]
        several = shared(*both, cards=0, memory_mib=16384, ubatch=512)
        assert [len(each.load.remotes) for each in (one, several)] == [1, 3]
        assert 1 / several.decode.expected - 1 / one.decode.expected == pytest.approx(2e-3, rel=0.05)

    def test_the_range_is_wide_since_nobody_measured_it(self) -> None:
        decode = shared(worker(epyc_9175f(1))).decode
        assert decode.low <= 0.65 * decode.expected
        assert decode.high >= 1.35 * decode.expected

    def test_where_one_node_is_faster_it_says_so(self) -> None:
        placement = shared(worker(epyc_9175f(0), link="1GbE"), memory_mib=773000)
        (said,) = [each for each in placement.warnings if each.startswith("rpc: ")]
        assert "fits on this node alone, and is faster there" in said
        assert said.endswith("take placement auto")

    def test_a_long_load_and_an_idle_worker_are_told(self) -> None:
        workers = [worker(epyc_9175f(0), link="1GbE"), worker(epyc_9175f(0), "epyc3", 3)]
        warnings = shared(*workers, cards=0, memory_mib=65536).warnings
        assert any("GiB over the link" in each and "epyc2: each start sends" in each for each in warnings)
        assert any(each.startswith("epyc3: gets no layer") for each in warnings)

    def test_an_idle_worker_holds_nothing(self) -> None:
        placement = shared(worker(epyc_9175f(0)), worker(epyc_9175f(0), "epyc3", 3), cards=0, memory_mib=65536)
        assert placement.rows[1].device == "RPC1"
        assert placement.rows[1].used_mib == 0

    def test_every_link_has_a_speed_and_a_faster_one_is_faster(self) -> None:
        speeds = [Link.of(kind).s(1e6) for kind in LINKS]
        assert speeds == sorted(speeds, reverse=True)


class TestRefusals:
    @pytest.mark.parametrize(
        ("wish", "said"),
        [
            ({"workers": ()}, "placement: rpc needs workers"),
            ({"tensor_split": (1.0,)}, "tensor_split: placement rpc chooses it"),
            ({"huge_pages": "static"}, "huge_pages: static pages would hold the layers of other nodes"),
            ({"workers": (worker(epyc_9175f(0), memory="cards"),)}, "rpc: epyc2 has no card"),
        ],
    )
    def test_one_line(self, wish: dict[str, Any], said: str) -> None:
        given_wish = {"workers": (worker(epyc_9175f(1)),), **wish}
        with pytest.raises(PlacementError, match=said):
            place(QWEN, epyc_9175f(1), Request(placement="rpc", **given_wish))


def test_the_whole_plan() -> None:
    """`UPDATE_GOLDEN=1 pytest tests/unit/test_remote_layers.py` writes it anew; read the difference first."""
    placement = shared(worker(epyc_9175f(1)), worker(epyc_9175f(0, 262144), "epyc3", 3, "25GbE"))
    text = json.dumps(placement.to_json("ik", offload_arguments(placement.offload, "ik")), indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
