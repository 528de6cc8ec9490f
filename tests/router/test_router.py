"""The router on a host of its own: how it is made, who may ask, where requests go, how nodes are taken out."""

import json
import time
import uuid

import pytest

from tests.fixtures.waiting import until
from tests.router.clients import Crowd
from tests.router.conftest import FRONT, NODES

UNIT = "moehost-router.service"
FOLDER, FILES = "/etc/moehost/router", "/run/moehost-router-files"
AT_FRONT = f"@podman/{FRONT}"


class TestAsDeployed:
    def test_a_second_run_changes_nothing(self, fleet, client):
        assert fleet.deploy() == []

    def test_it_runs_as_its_account_and_is_tight(self, fleet):
        fleet.run(FRONT, f"systemd-analyze security --offline=yes --threshold=20 /etc/systemd/system/{UNIT}")
        users = set(fleet.run(FRONT, "ps -o user:20= -C haproxy").split())
        assert users == {"moehost-router"}
        assert fleet.run(FRONT, "systemctl is-enabled haproxy.service || true") == "masked"
        print(fleet.run(FRONT, f"systemd-analyze security {UNIT} | tail -n 1"))

    def test_haproxy_itself_finds_nothing_to_complain_about(self, fleet):
        said = fleet.run(FRONT, f"haproxy -c -f {FILES}/running.cfg -f {FOLDER}/haproxy.cfg 2>&1")
        assert "ALERT" not in said
        print(fleet.run(FRONT, "haproxy -v | head -n 1"))

    def test_no_key_stands_where_others_look(self, fleet, client):
        node_key = fleet.run(FRONT, f"cat {FOLDER}/node-key")
        client.ask(f"/v1/models?key={client.key}", Cookie=f"key={client.key}")
        assert client.chat("hello").status == 200
        for name, keys in ((FRONT, [client.key, node_key]), (NODES[0], [client.key, node_key])):
            shown = fleet.run(name, "journalctl --no-pager --output cat")
            for pid in fleet.run(name, "pgrep -d ' ' .").split():
                words = f"tr '\\0' ' ' </proc/{pid}/cmdline; tr '\\0' ' ' </proc/{pid}/environ || true"
                shown += fleet.run(name, words, check=False)
            assert not [key for key in keys if key in shown]
        readable = fleet.run(
            FRONT, f"grep -rlF -e {node_key} -e {client.key} /etc /run /var /tmp 2>/dev/null || true"
        )
        own = {f"{FOLDER}/node-key", f"{FOLDER}/user-keys", f"{FILES}/users", f"{FILES}/node"}
        assert set(readable.split()) == own
        for path in (f"{FOLDER}/node-key", f"{FOLDER}/user-keys"):
            assert fleet.run(FRONT, f"stat -c '%a %U' {path}") == "600 root"
        assert fleet.run(FRONT, f"stat -c '%a %U:%G' {FILES}/node") == "640 root:moehost-router"
        assert fleet.run(NODES[0], "stat -c '%a %U' /etc/moehost/gateway/router-keys") == "600 root"
        done = fleet.moehost("router", "status", "--json")
        assert node_key not in done.stdout + done.stderr

    def test_the_packet_filter_knows_its_port(self, fleet):
        assert "tcp dport 8443" in fleet.run(FRONT, "nft --stateless list table inet moehost")


class TestAnswers:
    def test_lists_names_and_unknown_ones(self, client):
        models = json.loads(client.ask("/v1/models").body)
        assert [each["id"] for each in models["data"]] == ["tiny"]
        unknown = client.ask("/v1/chat/completions", {"model": "gpt-9", "messages": []})
        assert (unknown.status, unknown.code) == (404, "model_not_found")
        assert client.chat("hi", key="wrong").status == 401
        assert client.ask("/slots").status == 404

    def test_a_stream_comes_whole(self, client):
        client.stream("once upon a time", 64)

    def test_a_conversation_stays_and_many_spread(self, fleet, client):
        first = {text: fleet.home_of(client, text) for text in (f"{uuid.uuid4()}" for _ in range(6))}
        assert set(first.values()) == set(NODES)
        for text, home in list(first.items())[:3]:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "so"},
                     {"role": "user", "content": "and then?"}]  # fmt: skip
            assert fleet.home_of(client, text, messages=turns) == home


class TestKeys:
    def test_they_come_and_go_and_no_stream_breaks(self, fleet, client):
        crowd = Crowd(client, 6, 200)
        pid = fleet.stat("MainPID")
        key = fleet.moehost("keys", "add", "bob", AT_FRONT).stdout.strip()
        assert client.chat("hi", key=key).status == 200
        listed = fleet.moehost("keys", "list", AT_FRONT).stdout
        assert "bob" in listed and key not in listed
        assert fleet.moehost("keys", "revoke", "bob", AT_FRONT).returncode == 0
        assert client.chat("hi", key=key).status == 401
        crowd.stop()
        assert crowd.whole > 6 and not crowd.wrong
        assert fleet.stat("MainPID") == pid


class TestSettings:
    @pytest.fixture(autouse=True)
    def restored(self, fleet):
        yield
        fleet.deploy(FRONT)

    def test_limits_and_the_queue_and_a_reload_is_all_it_takes(self, fleet, client):
        pid = fleet.stat("MainPID")
        changed = fleet.deploy(FRONT, requests_per_minute=5, concurrent_requests=2, queue_s=5)
        assert changed == ["Router | Configure it", "Router | Run it, until it answers"]
        assert fleet.stat("MainPID") == pid
        statuses = [client.chat(f"limit {n}", 1) for n in range(8)]
        assert [each.status for each in statuses].count(429) >= 3
        late = next(each for each in statuses if each.status == 429)
        assert late.code == "rate_limit_exceeded"
        assert int(late.headers["retry-after"]) > 0

    def test_a_router_without_its_nodes_in_reach_keeps_what_it_knows(self, fleet, client):
        """Only the router is deployed to, and one of its nodes is away."""
        away = NODES[2]
        fleet.run(away, "mv /var/lib/moehost-gateway/caddy/pki /var/lib/moehost-gateway/caddy/pki.away")
        try:
            assert fleet.deploy(FRONT) == []
            assert f"{away} can't be asked for its certificate: the one from before stays" in fleet.said
        finally:
            fleet.run(away, "mv /var/lib/moehost-gateway/caddy/pki.away /var/lib/moehost-gateway/caddy/pki")

    def test_a_reload_is_owed_as_long_as_it_was_not_done(self, fleet):
        fleet.run(FRONT, f"echo 'eve a-key-by-hand-0123456789 -' >>{FOLDER}/user-keys")
        assert fleet.deploy(FRONT) == ["Router | Run it, until it answers"]
        fleet.run(FRONT, f"sed -i /^eve/d {FOLDER}/user-keys")
        assert fleet.deploy(FRONT) == ["Router | Run it, until it answers"]

    def test_a_node_that_nobody_knows(self, fleet):
        done = fleet.moehost("router", "drain", "epyc9")
        assert done.returncode == 2
        assert "epyc9: no router stands before it; they stand before @podman/moehost-router-1" in done.stderr


class TestDrain:
    def test_it_gives_nothing_outlives_a_reload_and_is_shown(self, fleet, client):
        name = NODES[0]
        done = fleet.moehost("router", "drain", f"@podman/{name}")
        assert done.returncode == 0, done.stderr
        before = fleet.asked(name)
        fleet.run(FRONT, f"systemctl reload {UNIT}")
        assert fleet.state(name) == "MAINT"
        for number in range(9):
            assert client.chat(f"drained {number}", 1).status == 200
        assert fleet.asked(name) == before
        shown = fleet.moehost("router", "status").stdout
        assert "drained until" in shown
        assert fleet.status()[name]["drained_until"] > time.time() + 3000
        again = fleet.moehost("router", "drain", f"@podman/{name}")
        assert again.returncode == 0
        back = fleet.moehost("router", "ready", f"@podman/{name}")
        assert back.returncode == 0, back.stderr
        assert fleet.state(name).startswith("UP")

    def test_it_waits_for_streams_and_says_what_is_left(self, fleet, client):
        name = NODES[2]
        # As many as there are slots, with answers that fill these: until the router is told, none may be through.
        crowd = Crowd(client, 12, 1900)
        until(lambda: fleet.requests()[name] > 1)
        short = fleet.moehost("router", "drain", f"@podman/{name}", "--wait", "0")
        assert short.returncode == 1
        assert "request(s); no new ones come" in short.stderr
        assert fleet.moehost("router", "drain", f"@podman/{name}").returncode == 0
        assert fleet.requests()[name] == 0
        assert fleet.moehost("router", "ready", f"@podman/{name}").returncode == 0
        crowd.stop()
        assert crowd.whole > 0 and not crowd.wrong

    def test_it_ends_by_itself(self, fleet):
        name = NODES[1]
        assert fleet.moehost("router", "drain", f"@podman/{name}", "--minutes", "1").returncode == 0
        fleet.run(FRONT, "for each in /run/moehost-router-drains/*.until; do echo 1 >$each; done")
        until(lambda: fleet.state(name).startswith("UP"), 90)
        assert fleet.run(FRONT, "ls /run/moehost-router-drains/*.until 2>/dev/null || true") == ""
