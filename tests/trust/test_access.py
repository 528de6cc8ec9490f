"""What gets through the gateway from outside, and what does not: each with the status that was seen."""

import json
import time

import pytest

from tests.fixtures.gateway_client import PORT
from tests.trust.conftest import moehost

ADMIN = [
    *(
        "/slots",
        "/props",
        "/metrics",
        "/lora-adapters",
        "/cors-proxy",
        "/save",
        "/load",
        "/unload",
        "/vacuum",
        "/tools",
    ),
    *("/slots/0?action=save", "/", "/index.html", "/models/load", "/v1/audio/transcriptions", "/v1/files", "/zstd"),
]
# Other spellings of what is allowed, and of what is not.
DISGUISED = [
    *("//v1/models", "/v1//models", "/v1/models/", "/V1/MODELS", "/v1/model%73", "/v1%2fmodels", "/./v1/models"),
    *(
        "/v1/../v1/models",
        "/slots/../v1/models",
        "/v1/models/../../slots",
        "/v1/models/..%2f..%2fslots",
        "/%2e/slots",
    ),
    *(
        "/tiny/slots",
        "/tiny//v1/models",
        "/tiny/../slots",
        "/tiny/tiny/v1/models",
        "/other/v1/models",
        "/v1/models;a",
    ),
    *("/%73lots", "//slots", "/v1/..;/slots", "/v1/models%00", "/v1/models%3f", "/health/../slots", "/v1/models%20"),
]


@pytest.fixture(scope="module")
def key(clients):
    return clients.keys["alice"]


@pytest.fixture(scope="module")
def internal_key(node):
    """The key of the service itself, which no client has."""
    return node.run("cat /etc/moehost/tiny/api-keys")


class TestKeys:
    def test_a_good_key_gets_an_answer(self, clients, key):
        answer = clients.chat(key)
        assert answer.status == 200
        assert json.loads(answer.body)["usage"]["completion_tokens"] == 4

    @pytest.mark.parametrize("header", ["Authorization: bearer {}", "X-Api-Key: {}", "x-api-key: {}"])
    def test_in_other_spellings(self, clients, key, header):
        assert clients.ask("/tiny/v1/models", headers=(header.format(key),)).status == 200

    def test_without_one(self, clients):
        answer = clients.chat("")
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/json"
        assert "server" not in answer.headers

    @pytest.mark.parametrize("path", ["/v1/models", "/tiny/v1/models", "/models"])
    def test_not_even_the_models_are_shown(self, clients, path):
        assert clients.ask(path).status == 401

    def test_wrong_ones(self, clients, key):
        for wrong in (key[:-1], key + "a", key.swapcase(), "a", "alice", "{http.auth.user.id}", "*", ".*", '"'):
            assert clients.ask("/v1/models", headers=(f"X-Api-Key: {wrong}".replace('"', '\\"'),)).status == 401, (
                wrong
            )
            assert (
                clients.ask("/v1/models", headers=(f"Authorization: Basic {wrong}".replace('"', '\\"'),)).status
                == 401
            )
        both = ("Authorization: Bearer wrong", f"X-Api-Key: {key}")
        assert clients.ask("/v1/models", headers=both).status == 401
        twice = (f"Authorization: Bearer {key}", "Authorization: Bearer wrong")
        assert clients.ask("/v1/models", "--http1.1", headers=twice).status == 401

    @pytest.mark.parametrize("query", ["?key={}", "?api_key={}", "?access_token={}", "?Authorization=Bearer%20{}"])
    def test_in_the_query(self, clients, key, query):
        assert clients.ask(f"/v1/models{query.format(key)}").status == 401

    def test_the_key_of_the_service_itself(self, clients, internal_key):
        assert clients.chat(internal_key).status == 401
        assert clients.ask("/v1/models", headers=(f"X-Api-Key: {internal_key}",)).status == 401

    def test_health_needs_none(self, clients):
        assert clients.ask("/health").status == 200
        assert clients.ask("/tiny/health").status == 200


class TestPaths:
    @pytest.mark.parametrize("path", [*ADMIN, *DISGUISED])
    def test_what_is_not_named_is_not_there(self, clients, key, path):
        for method in ("GET", "POST"):
            for version in ("--http1.1", "--http2"):
                answer = clients.ask(path, key, "--request", method, version)
                # 400: what is no address at all does not come as far.
                assert answer.status in ((404, 400) if "%00" in path else (404,)), answer

    @pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "PATCH", "CONNECT", "OPTIONS", "PROPFIND", "get"])
    def test_other_methods(self, clients, key, method):
        for path in ("/v1/models", "/v1/chat/completions", "/health"):
            answer = clients.ask(path, key, "--http1.1", "--request", method)
            assert answer.status == 405, (method, path)

    def test_a_query_does_not_reach_the_engine(self, clients, key):
        assert clients.ask("/v1/models?reload=1&autoload=0", key).status == 200

    def test_tokens(self, clients, key):
        answer = clients.ask(
            "/tokenize", key, "--data", '{"content": "hi"}', headers=("Content-Type: application/json",)
        )
        assert json.loads(answer.body)["tokens"]


class TestPages:
    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://llm.home.arpa", "*"])
    def test_another_origin(self, clients, key, origin):
        for path in ("/v1/models", "/health", "/slots"):
            # A semicolon is how curl is told to send a header without a value.
            header = f"Origin: {origin}" if origin else "Origin;"
            answer = clients.ask(path, key, headers=(header,))
            assert answer.status == 403
            assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_its_preflight(self, clients):
        asked = ("Origin: https://evil.example", "Access-Control-Request-Method: POST")
        answer = clients.ask("/v1/chat/completions", None, "--request", "OPTIONS", headers=asked)
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_the_engine_lets_no_page_in(self, node, clients, key, internal_key):
        command = (
            f"curl -si -H 'Authorization: Bearer {internal_key}' -H 'Origin: https://a' 127.0.0.1:8080/v1/models"
        )
        assert "access-control-allow-origin" in node.run(command).lower()
        answer = clients.ask("/v1/models", key)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "server" not in answer.headers


class TestConnections:
    def test_a_request_that_is_too_large(self, node, clients, key, tmp_path):
        def refused():
            return int(node.run("journalctl --output cat --unit moehost-gateway | grep -c '\"status\":413' || true"))

        (tmp_path / "large").write_bytes(b"a" * (65 << 20))
        data = ("--data-binary", f"@{tmp_path / 'large'}")
        for more in ((), ("--http1.1",), ("--http1.1", "--header", "Transfer-Encoding: chunked")):
            before = refused()
            answer = clients.ask("/v1/chat/completions", key, *data, *more, is_cut_off=True)
            assert answer.status in (413, 0), more
            assert refused() > before

    def test_headers_that_are_too_large(self, clients, key):
        answer = clients.ask("/v1/models", key, "--http1.1", headers=(f"X-Large: {'a' * 40000}",))
        assert answer.status == 431

    def test_plain_http_on_the_port_of_tls(self, clients):
        words = ("curl", "--silent", "--write-out", "%{http_code}", f"http://{clients.address}:{PORT}/v1/models")
        assert clients.outside.run(*words).stdout.endswith("400")

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    def test_old_tls(self, clients, version):
        words = (*("curl", "--silent", "--show-error", "--insecure"), *("--ciphers", "ALL:@SECLEVEL=0"))
        limits = (f"--tlsv{version}", "--tls-max", version)
        done = clients.outside.run(*words, *limits, f"https://{clients.address}:{PORT}/health")
        assert done.returncode == 35, done
        assert "protocol version" in done.stderr
        assert clients.outside.run(*words, "--tlsv1.2", f"https://{clients.address}:{PORT}/health").returncode == 0

    def test_who_calls_by_an_address(self, clients, key):
        words = ("curl", "--silent", "--insecure", "--config", "-", f"https://{clients.address}:{PORT}/v1/models")
        assert '"tiny"' in clients.outside.run(*words, stdin=f'header = "Authorization: Bearer {key}"').stdout

    @pytest.mark.parametrize("port", [8080, 2019, 80, 443])
    def test_other_ports(self, clients, port):
        done = clients.outside.run("curl", "--silent", "--max-time", "5", f"http://{clients.address}:{port}/")
        # Nobody listens, or the packet filter says nothing.
        assert done.returncode == (28 if port == 8080 else 7), done

    def test_the_admin_socket(self, node):
        socket = "/run/moehost-gateway/admin.sock"
        assert node.run(f"stat -c '%a %U' {socket}") == "700 moehost-gateway"
        assert node.run("stat -c '%a %U' /run/moehost-gateway") == "700 moehost-gateway"
        # As a service that was broken into.
        ask = f"runuser -u moehost -- curl --silent --unix-socket {socket} http://a/config/; echo $?"
        assert node.run(ask) == "7"
        assert "2019" not in node.run("ss -Hltn")

    def test_connections_that_are_held_open(self, clients, key):
        holder = clients.start("half-open", count=200)
        assert holder.stdout.readline() == "open\n"
        began = time.monotonic()
        assert clients.chat(key).status == 200
        took_s = time.monotonic() - began
        found = json.loads(holder.stdout.read())
        print(f"200 connections held open: another client had its answer after {took_s:.2f} s, "
              f"they lived {min(found['lived']):.1f} to {max(found['lived']):.1f} s")  # fmt: skip
        assert took_s < 10
        assert found["left"] == 0
        assert max(found["lived"]) < 20


class TestStreams:
    def test_pieces_come_one_by_one(self, clients, key):
        lines = clients.start("stream", key=key, tokens=300).stdout.read().splitlines()
        assert lines[-1].endswith("[DONE]")
        times = [float(line.split()[0]) for line in lines]
        assert len(times) > 300
        # Buffered pieces would come all at once, however busy this computer is.
        moments = len({f"{each:.2f}" for each in times})
        print(f"{len(times)} pieces at {moments} moments of {times[-1] - times[0]:.2f} s")
        assert moments > 10
        assert times[-1] - times[0] > 0.1

    def test_keys_change_while_one_is_under_way(self, node, clients, key):
        """The engine is held for that long, so that the answer surely spans the changes."""
        process = node.process
        pid = node.run(f"systemctl show --property MainPID --value {node.unit}")
        gateway = node.run("systemctl show --property MainPID --value moehost-gateway")
        stream = clients.start("stream", key=key, tokens=600)
        first = stream.stdout.readline()
        node.run(f"kill -STOP {pid}")
        try:
            added = moehost(node, "keys", "add", "bob")
            assert added.returncode == 0, added.stderr
            assert moehost(node, "keys", "revoke", "bob").returncode == 0
            changed_s = time.monotonic()
        finally:
            node.run(f"kill -CONT {pid}")
        pieces = [first, *stream.stdout.read().splitlines()]
        assert pieces[-1].endswith("[DONE]")
        assert len(pieces) >= 600
        after = [line for line in pieces if float(line.split()[0]) > changed_s]
        print(f"{len(pieces) - len(after)} pieces before the keys changed, {len(after)} after")
        # Whoever buffered would have had none before.
        assert 1 < len(after) < len(pieces)
        assert node.process == process
        assert node.run("systemctl show --property MainPID --value moehost-gateway") == gateway

    def test_a_key_is_good_at_once_and_bad_at_once(self, node, clients):
        added = moehost(node, "keys", "add", "carol")
        carols = added.stdout.strip()
        assert clients.ask("/v1/models", carols).status == 200
        # One that keeps its connection is refused, too.
        asking = clients.start("keep-alive", key=carols, seconds=120, after_refusal_s=5)
        asking.stdout.readline()
        assert moehost(node, "keys", "revoke", "carol").returncode == 0
        revoked_s = time.time()
        lines = [line.split() for line in asking.stdout.read().splitlines()]
        statuses = [status for _, status in lines]
        first = statuses.index("401")
        assert set(statuses[:first]) == {"200"}
        # For seconds: not one of them comes through any more.
        assert set(statuses[first:]) == {"401"}
        last = float(lines[first - 1][0])
        assert last < revoked_s + 2
        print(f"the last 200 came {last - revoked_s:+.2f} s after `moehost keys revoke` had ended")
