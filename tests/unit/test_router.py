"""Which node serves what, what may be wrong with that, and the router's files, as golden ones.

`UPDATE_GOLDEN=1 pytest tests/unit/test_router.py` writes them anew; read the difference before you commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moehost import balancer, router, settings
from moehost.router import KeyFileError
from roles.router import wanted

GOLDEN = Path(__file__).parents[1] / "fixtures/router"
OWN = {"certificate_file": "c", "certificate_key_file": "k"}


def service(name: str, model: str = "m", **more: Any) -> dict[str, Any]:
    return {"name": name, "model": {"name": model, "source": "file:///srv/m.gguf"}, **more}


def node(*services: dict[str, Any], **gateway: Any) -> settings.Node:
    return settings.read({"services": list(services), "gateway": gateway or None})


NODES = {
    "epyc1": node(service("qwen", parallel=2), host="epyc1.home.arpa"),
    "epyc2": node(service("qwen"), service("glm", "g", port=8081), host="192.168.1.7", port=8443),
    "epyc3": node(service("glm", "g"), host="epyc3.home.arpa", **OWN),
}


def front(*names: str, **more: Any) -> settings.Node:
    return settings.read({"router": {"host": "llm.home.arpa", "nodes": list(names), **more}})


ONE = front("epyc1")
ALL = front(
    *NODES,
    port=8443,
    host="192.168.1.5",
    certificate_file="c",
    certificate_key_file="k",
    node_ca_file="ca",
    queue_s=30,
    max_body_mib=4,
    requests_per_minute=10,
    concurrent_requests=2,
    allow_from=["192.168.1.0/24"],
)


def models(host: settings.Node) -> list[router.Model]:
    assert host.router
    return router.models(host.router, NODES)


FILES = {
    "one.cfg": wanted.configuration(ONE, models(ONE), True),
    "all.cfg": wanted.configuration(ALL, models(ALL), False),
    "one.service": wanted.unit(ONE, models(ONE), "0123456789abcdef"),
    "all.service": wanted.unit(ALL, models(ALL), "0123456789abcdef"),
}


class TestGolden:
    @pytest.mark.parametrize("name", FILES)
    def test_the_whole_file(self, name: str) -> None:
        file = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            file.write_text(FILES[name])
        assert FILES[name] == file.read_text()

    def test_every_file_is_made(self) -> None:
        assert {path.name for path in GOLDEN.iterdir()} == set(FILES)

    def test_no_line_has_more_words_than_haproxy_takes(self) -> None:
        longest = max(len(line.split()) for name in ("one.cfg", "all.cfg") for line in FILES[name].splitlines())
        assert longest < 64


class TestModels:
    def test_services_of_one_name_are_one_model(self) -> None:
        found = {each.name: [(one.node, one.address, one.slots) for one in each.servers] for each in models(ALL)}
        assert found == {
            "qwen": [("epyc1", "epyc1.home.arpa:443", 2), ("epyc2", "192.168.1.7:8443", 1)],
            "glm": [("epyc2", "192.168.1.7:8443", 1), ("epyc3", "epyc3.home.arpa:443", 1)],
        }

    def test_how_nodes_are_known(self) -> None:
        assert ALL.router and ONE.router
        servers = {one.node: one for each in models(ALL) for one in each.servers}
        paths = {name: wanted.authority(ALL.router, one) for name, one in servers.items()}
        assert paths["epyc1"] == "/etc/moehost/router/nodes/epyc1.crt"
        assert paths["epyc3"] == "/etc/moehost/router/nodes/owners.crt"
        assert wanted.authority(ONE.router, servers["epyc3"]) == "/etc/ssl/certs/ca-certificates.crt"
        assert [servers[name].verified_name for name in NODES] == ["epyc1.home.arpa", None, "epyc3.home.arpa"]

    def test_whom_it_talks_to(self) -> None:
        assert ALL.router
        found = router.addresses(ALL.router, models(ALL))
        assert found[:2] == ["localhost", "192.168.1.0/24"]
        assert found[-1] == "192.168.1.7"

    def test_the_list_of_models(self) -> None:
        listed = json.loads(wanted.tables(models(ALL))["/etc/moehost/router/models.json"])
        assert [each["id"] for each in listed["data"]] == ["qwen", "glm"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("names", "nodes", "line"),
        [
            (["epyc1", "epyc9"], {}, "router.nodes: 'epyc9' is no host of the inventory; it has epyc1, epyc2, epyc3"),
            (["epyc1"], {"epyc1": node(service("a"))}, "router.nodes: epyc1 has no gateway; write gateway: {'host'"),
            (["epyc1"], {"epyc1": node(host="a.home.arpa")}, "router.nodes: epyc1 has no service; write one"),
            (
                ["epyc1", "epyc2"],
                {"epyc2": node(service("qwen", "other"), host="b.home.arpa")},
                "router.nodes: 'qwen' is m on epyc1 and other on epyc2; services of one name must serve one model",
            ),
        ],
    )
    def test_what_is_wrong_with_nodes(self, names: list[str], nodes: dict[str, settings.Node], line: str) -> None:
        wish = front(*names).router
        assert wish
        (said,) = router.mistakes("front", wish, NODES, NODES | nodes)
        assert said.startswith(line)

    def test_what_is_right(self) -> None:
        assert ALL.router
        assert router.mistakes("front", ALL.router, NODES, NODES) == []

    def test_nodes_whose_settings_are_wrong(self) -> None:
        assert ALL.router
        (said,) = router.mistakes("front", ALL.router, NODES, {})
        assert "the settings of no node are right" in said

    @pytest.mark.parametrize(
        ("data", "line"),
        [
            ({"nodes": []}, "router.nodes: "),
            ({"nodes": ["a", "a"]}, "router.nodes: a node is named twice"),
            ({"nodes": ["a"], "certificate_file": "c"}, "certificate_file and certificate_key_file belong together"),
            ({"nodes": ["a"], "queue": 3}, "router.queue: unknown setting"),
        ],
    )
    def test_settings(self, data: dict[str, Any], line: str) -> None:
        with pytest.raises(settings.SettingsError) as error:
            settings.read({"router": {"host": "llm.home.arpa", **data}})
        assert any(line in each for each in error.value.lines), error.value.lines

    def test_gateway_and_router_on_one_port(self) -> None:
        with pytest.raises(settings.SettingsError, match=r"router.port: 443 is taken by gateway.port"):
            settings.read({"gateway": {"host": "a"}, "router": {"host": "b", "nodes": ["c"]}})


class TestNodeKeys:
    def test_a_node_is_told_of_its_routers_only(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text("# by openssl\nthe-key-of-the-router-01\n")
        hosts = {**NODES, "front": front("epyc1", node_key_file=str(path))}
        assert router.node_keys("epyc1", hosts) == "router the-key-of-the-router-01 -\n"
        assert router.node_keys("epyc2", hosts) is None

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            (None, "can't be read; make it: umask 077; openssl rand -hex 32"),
            ("", "has no key in it"),
            ("short\n", "a key needs 16"),
            ("the-key-of-the-router-01\nthe-key-of-the-router-02\n", "has several keys; leave one"),
        ],
    )
    def test_files_that_are_no_good(self, tmp_path: Path, text: str | None, why: str) -> None:
        path = tmp_path / "key"
        if text is not None:
            path.write_text(text)
        with pytest.raises(KeyFileError, match=r"router\.node_key_file") as error:
            router.node_key(str(path))
        assert why in str(error.value)
        assert text is None or "the-key-of" not in str(error.value)


class TestState:
    NODES = {"tiny": {"n1": 8443, "n2": 8443}}
    RUNNING = (
        "1\n# be_id be_name ...\n"
        "4 model-tiny 1 n1 10.0.0.1 2 0 1 1 5 15 3 1 6 0 0 0 n1.home 8443 - 1 0 - - 0\n"
        "4 model-tiny 2 n2 - 0 32 1 1 5 1 0 0 14 0 0 0 n2.home 8443 - 1 0 - - 0\n"
        "5 model-gone 1 n3 10.0.0.3 2 0 1 1 5 15 3 1 6 0 0 0 n3.home 8443 - 1 0 - - 0\n"
    )

    def lines(self, running: str, drained: set[str]) -> dict[str, list[str]]:
        text = balancer.state(self.NODES, running, drained)
        assert text.startswith("1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state ")
        return {line.split()[3]: line.split() for line in text.splitlines()[2:]}

    def test_at_a_start_all_are_down_until_checked_and_speak_tls(self) -> None:
        lines = self.lines("", {"n2"})
        assert {name: (words[5], words[6], words[20]) for name, words in lines.items()} == {
            "n1": ("0", "0", "1"),
            "n2": ("0", "1", "1"),
        }
        assert {len(words) for words in lines.values()} == {25}

    def test_what_is_known_goes_on_and_what_had_no_address_begins_anew(self) -> None:
        lines = self.lines(self.RUNNING, set())
        assert list(lines) == ["n1", "n2"]
        assert lines["n1"][5] == "2"
        assert (lines["n2"][5], lines["n2"][6]) == ("0", "0")

    def test_leases_decide_and_not_what_it_was_told(self) -> None:
        told = self.RUNNING.replace("10.0.0.1 2 0", "10.0.0.1 0 1")
        assert self.lines(told, set())["n1"][6] == "0"
        assert self.lines(self.RUNNING, {"n1"})["n1"][6] == "1"


class TestUsers:
    def test_only_what_can_be_a_key_is_read_by_haproxy(self) -> None:
        text = (
            "alice key-of-alice-0123456789 2026-11-29T18:00:00Z\n# comment key\n\nbob short -\n"
            "Eve key-of-eve-0123456789 -\n"
            "carol key-of-alice-0123456789 -\ndave key-of-dave-0123456789\n"
        )
        assert balancer.users(text) == "key-of-alice-0123456789 alice\nkey-of-dave-0123456789 dave\n"


class TestNames:
    @pytest.mark.parametrize(
        ("host", "name"),
        [("llm.home.arpa", "DNS:llm.home.arpa"), ("192.168.1.5", "IP:192.168.1.5"), ("fd00::1", "IP:fd00::1")],
    )
    def test_how_a_certificate_spells_them(self, host: str, name: str) -> None:
        assert router.certificate_name(host) == name
