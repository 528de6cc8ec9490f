"""What gateway and router have in common: a free port, a program without its unit, an account, files handed over."""

import pytest
from pyinfra.facts.deb import DebPackages

from roles import proxy
from roles.facts import FileStates, MissingPackages, PathsThere
from roles.llama_server.facts import ServiceState
from roles.operations import file_state
from tests.operations.plain import play

LIST = "/etc/moehost/list"


class TestPort:
    def test_of_another_program(self):
        state = {"port_holder": '"nginx",pid=77'}
        ((_, (reason,), _),) = play(
            proxy.port_is_free, {ServiceState: state}, setting="gateway.port", unit="u.service", port=443
        )[0]
        assert reason == "gateway.port: 443 is taken by nginx (pid 77); choose another or stop that program"

    @pytest.mark.parametrize("state", [{}, {"port_holder": ""}])
    def test_free_or_its_own(self, state):
        assert (
            play(proxy.port_is_free, {ServiceState: state}, setting="gateway.port", unit="u.service", port=443)[0]
            == []
        )


class TestCaddy:
    def test_its_own_service_does_not_start(self):
        commands, _ = play(
            proxy.without_its_unit,
            {MissingPackages: ["caddy"], DebPackages: {}},
            wanted=["caddy"],
            unit="caddy.service",
        )
        assert commands[0] == "systemctl mask --quiet caddy.service"
        assert "install" in commands[-1]

    def test_one_that_is_there_is_its_owners(self):
        assert play(proxy.without_its_unit, {MissingPackages: []}, wanted=["caddy"], unit="caddy.service") == (
            [],
            ["installed: caddy"],
        )


def test_the_account():
    asked = {"sysusers": "/etc/sysusers.d/a.conf", "text": "u a -\n", "user": "a"}
    there = {asked["sysusers"]: file_state(asked["text"])}
    assert play(proxy.account, {FileStates: there, PathsThere: ["a"]}, **asked)[0] == []
    commands, _ = play(proxy.account, {FileStates: {}, PathsThere: []}, **asked)
    assert commands[-1] == "systemd-sysusers /etc/sysusers.d/a.conf"


class TestHandedOver:
    def run(self, text, there):
        facts = {FileStates: there}
        return play(proxy.handed_over, facts, contents={LIST: text}, mode="600", owner="root:root")[0]

    def test_it_comes_stays_and_goes(self):
        there = {LIST: file_state("a\n", "600")}
        assert self.run(None, {}) == self.run("a\n", there) == []
        assert self.run("a\n", {})[0]["_stdin"] == "a\n"
        assert self.run("b\n", there)[0]["_stdin"] == "b\n"
        assert self.run(None, there) == [f"rm {LIST}"]

    def test_others_may_read_it(self):
        assert self.run("a\n", {LIST: file_state("a\n", "644")})[0]["_stdin"] == "a\n"
