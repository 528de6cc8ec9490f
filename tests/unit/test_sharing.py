"""Which nodes work for which: parts, peers of packet filters, builds that fit, and mistakes, a line each."""

from __future__ import annotations

from typing import Any

import pytest

from moehost import settings, sharing
from moehost.settings import Node, SettingsError
from tests.unit.shared import SHARE, main_node, rpc, worker_node

NODES = {"epyc1": main_node("epyc2", "epyc3"), "epyc2": worker_node(), "epyc3": worker_node(), "other": worker_node()}


class TestShares:
    def test_each_worker_has_a_part(self) -> None:
        found = sharing.shares(NODES)
        assert [(each.worker, each.address, each.port) for each in found] == [
            ("epyc2", "10.0.0.2", 50052),
            ("epyc3", "10.0.0.3", 50052),
        ]
        assert {(each.main, each.main_address, each.unit) for each in found} == {
            ("epyc1", "10.0.0.1", "moehost-rpc-qwen.service")
        }

    def test_the_filters_know_exactly_whom_they_need(self) -> None:
        found = sharing.shares(NODES)
        assert sharing.peers(found, "epyc2") == sharing.Peers(doors=((50052, "10.0.0.1"),))
        assert sharing.peers(found, "epyc1") == sharing.Peers(calls=(("10.0.0.2", 50052), ("10.0.0.3", 50052)))
        assert sharing.peers(found, "other") == sharing.NOBODY

    @pytest.mark.parametrize(
        ("dialect", "cards", "words"),
        [
            ("llama.cpp", 0, "-d CPU"),
            ("llama.cpp", 2, "-d CUDA0,CUDA1"),
            ("ik", 0, "-cpu -d CPU"),
            ("ik", 1, "-d CUDA0"),
        ],
    )
    def test_each_dialect_is_told_what_to_lend(self, dialect: Any, cards: int, words: str) -> None:
        assert SHARE.command_line(dialect, cards, 16) == ["-H", "10.0.0.2", "-p", "50052", "-t", "16", *words.split()]


class TestIdentity:
    GIT = {"source": "git", "commit": "8337", "options": ["A=1"]}
    PACKAGE = {"source": "package", "package": "1", "sha256": "a" * 64, "backend": "0.27"}

    def test_processor_and_cards_may_differ_and_the_commit_may_not(self) -> None:
        assert sharing.identity(self.GIT) == sharing.identity(self.GIT | {"options": ["B=1"]})
        assert sharing.identity(self.GIT) != sharing.identity(self.GIT | {"commit": "9999"})

    @pytest.mark.parametrize("change", [{"package": "2"}, {"sha256": "b" * 64}, {"backend": "0.28"}])
    def test_packages_are_the_same_to_the_byte(self, change: dict[str, str]) -> None:
        assert sharing.identity(self.PACKAGE) != sharing.identity(self.PACKAGE | change)


def said(nodes: dict[str, Node], host: str) -> str:
    return "\n".join(sharing.problems(nodes, host))


class TestProblems:
    @pytest.mark.parametrize("host", NODES)
    def test_what_fits_has_none(self, host: str) -> None:
        assert said(NODES, host) == ""

    @pytest.mark.parametrize(
        ("nodes", "host", "reason"),
        [
            ({"epyc1": main_node("epyc2")}, "epyc1", "[0].host: epyc2 is no host of the inventory"),
            ({"epyc1": main_node("epyc1")}, "epyc1", "epyc1 is this node itself"),
            (
                {"epyc1": main_node("epyc2"), "epyc2": worker_node(firewall={"policy": "off"})},
                "epyc1",
                "epyc2 has firewall.policy 'off', and a worker must be reached by this node alone",
            ),
            (
                {"epyc1": main_node("epyc2"), "epyc2": settings.read({})},
                "epyc1",
                "the engine of epyc2 has no RPC; write engine: {'rpc': True} there",
            ),
            (
                {"epyc1": main_node("epyc2"), "epyc2": settings.read({"engine": {"rpc": True, "source": "package"}})},
                "epyc1",
                "epyc2 has another engine (package, here git 8337e4cd",
            ),
            (
                {
                    "epyc1": main_node("epyc2"),
                    "epyc9": main_node("epyc2", service={"rpc": rpc("epyc2", port=50053)}),
                    "epyc2": worker_node(),
                },
                "epyc2",
                "rpc: qwen of epyc9 and qwen of epyc1 both want qwen here",
            ),
            (
                {
                    "epyc1": main_node("epyc2"),
                    "epyc9": main_node("epyc2", service={"name": "other"}),
                    "epyc2": worker_node(),
                },
                "epyc2",
                "rpc: other of epyc9 and qwen of epyc1 both want 50052 here",
            ),
            (
                {"epyc1": main_node("epyc2"), "epyc2": worker_node(gateway={"host": "a.home", "port": 50052})},
                "epyc2",
                "rpc: qwen of epyc1 wants port 50052, which is taken here",
            ),
        ],
    )
    def test_one_line_says_what_does_not_fit(self, nodes: dict[str, Node], host: str, reason: str) -> None:
        lines = list(sharing.problems(nodes, host))
        assert len(lines) == 1
        assert reason in lines[0]


class TestSettings:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"network": "0.0.0.0/0"}, "services[0].rpc.network: 0.0.0.0/0 is no private network"),
            ({"network": "8.8.8.0/24"}, "8.8.8.0/24 is no private network, and whoever reaches a worker owns it"),
            ({"network": "10.0.0.0/7"}, "10.0.0.0/7 is no private network"),
            ({"network": "10.0.0.1/24"}, "is no IPv4 network (10.0.0.1/24 has host bits set)"),
            ({"network": "100.64.0.0/10"}, "100.64.0.0/10 is no private network"),
            ({"network": "fd00::/64"}, "'fd00::/64' is no IPv4 network"),
            (
                {"network": "192.168.0.0/16"},
                "services[0].rpc: address: 10.0.0.1 is not in the network 192.168.0.0/16",
            ),
            ({"address": "10.0.1.1"}, "services[0].rpc: address: 10.0.1.1 is not in the network 10.0.0.0/24"),
            ({"address": "fe80::1"}, "services[0].rpc.address: 'fe80::1' is no IPv4 address"),
            ({"address": "10.0.0.2"}, "workers[0].address: 10.0.0.2 is also address"),
            ({"workers": []}, "services[0].rpc.workers: []: list should have at least 1 item"),
            (
                {"workers": [{"host": "epyc2", "address": "192.0.2.7"}]},
                "workers[0].address: 192.0.2.7 is not in the network 10.0.0.0/24",
            ),
            (
                {"workers": [{"host": "a", "address": "10.0.0.2"}, {"host": "a", "address": "10.0.0.3"}]},
                "a host is named twice",
            ),
            ({"port": 22}, "services[0].rpc.port: 22"),
        ],
    )
    def test_a_network_that_is_not_to_be_trusted_is_one_line(self, change: dict[str, Any], reason: str) -> None:
        with pytest.raises(SettingsError) as error:
            main_node("epyc2", service={"rpc": rpc("epyc2") | change})
        (line,) = error.value.lines
        assert reason in line

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            ({"firewall": {"policy": "off"}}, "services[0].rpc: a worker must be reached by this node alone"),
            ({"engine": {"rpc": False}}, "services[0].rpc: the engine has no RPC; write engine: {'rpc': True}"),
            ({"service": {"placement": "auto"}}, "placement 'rpc' and the setting rpc belong together"),
            ({"service": {"rpc": None}}, "placement 'rpc' and the setting rpc belong together"),
            ({"service": {"runtime": "container"}}, "placement 'rpc' is for runtime 'native'"),
        ],
    )
    def test_what_belongs_together(self, more: dict[str, Any], reason: str) -> None:
        with pytest.raises(SettingsError) as error:
            main_node("epyc2", **{"engine": {"rpc": True}, **more})
        assert any(reason in line for line in error.value.lines)
