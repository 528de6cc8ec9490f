"""The gateway on a node: how it is made, what it may, what it notes, how it goes; an owner's certificate and keys."""

import copy
import json
import subprocess

import pytest

from tests.fixtures.firewalled import GUARD
from tests.fixtures.gateway_client import HOST, PORT, Clients
from tests.fixtures.node import ROOT, changes
from tests.trust.conftest import moehost

UNIT = "moehost-gateway.service"
FOLDER = "/etc/moehost/gateway"
PAGE = "https://chat.home.arpa"
OWNERS_KEY = "a-key-of-the-owners-0123456789"


def with_gateway(node, **more):
    """The scenario's settings with other values of the gateway."""
    settings = copy.deepcopy(node.settings)
    settings["gateway"].update(more)
    return settings


@pytest.fixture
def restored(node):
    """The scenario's settings come back afterwards."""
    yield
    changes(node.deploy())


def main_pid(node, unit):
    return node.run(f"systemctl show --property MainPID --value {unit}")


class TestAsDeployed:
    def test_a_second_run_changes_nothing(self, node, clients):
        assert changes(node.deploy()) == []

    def test_the_sandbox_is_tight(self, node):
        node.run(f"systemd-analyze security --offline=yes --threshold=20 /etc/systemd/system/{UNIT}")
        print(node.run(f"systemd-analyze security {UNIT} | tail -n 1"))

    def test_caddys_own_service_is_not_there(self, node):
        assert node.run("systemctl is-enabled caddy.service || true") == "masked"
        assert node.run("pgrep -c caddy") == "1"
        assert node.run("ps -o user= -p $(pgrep caddy)").startswith("moehost-")

    def test_who_reads_keys(self, node, clients):
        account = "runuser -u moehost-gateway --"
        assert node.run(f"stat -c '%a %U' {FOLDER}/user-keys") == "600 root"
        assert node.run("stat -c '%a %U:%G' /run/moehost-gateway-keys/users") == "640 root:moehost-gateway"
        assert node.run(f"{account} cat {FOLDER}/user-keys || echo refused") == "refused"
        assert node.run("runuser -u moehost -- cat /run/moehost-gateway-keys/users || echo refused") == "refused"
        # Caddy's own copy of what it goes by.
        copies = node.run("find / -xdev -name autosave.json; find /run -name autosave.json")
        assert copies == "/run/moehost-gateway/caddy/autosave.json"
        assert node.run(f"stat -c '%a %U' {copies}") == "600 moehost-gateway"

    def test_no_key_stands_where_others_look(self, node, clients):
        key, service = clients.keys["alice"], node.run("cat /etc/moehost/tiny/api-keys")
        clients.chat(key)
        # With what a careless client sends, and with an engine that is away: errors are logged with their requests.
        careless = (f"X-Api-Key: {key}", f"Cookie: key={key}", f"X-Other: {key}")
        clients.ask(f"/v1/models?key={key}", key, headers=careless)
        pid = main_pid(node, node.unit)
        node.run(f"kill -STOP {pid}")
        try:
            clients.outside.run(
                *("curl", "--silent", "--insecure", "--max-time", "2", "--config", "-"),
                f"https://{clients.address}:{PORT}/v1/models?key={key}",
                stdin=f'header = "Authorization: Bearer {key}"\nheader = "X-Api-Key: {key}"\n',
            )
        finally:
            node.run(f"kill -CONT {pid}")
        text = node.run(f"journalctl --no-pager --output cat --unit {UNIT}")
        text += node.run(f"journalctl --no-pager --output cat --unit {node.unit}")
        assert '"user_id":"alice"' in text
        assert "/v1/models" in text
        for secret in (key, service):
            assert secret not in text
            public = "grep -rlsF -- {} /etc /run /usr/local /var/log /var/lib/moehost-gateway 2>/dev/null || true"
            # Root's own reading, so each file that holds one is named: those, and no others.
            found = set(node.run(public.format(secret)).split())
            own = {f"{FOLDER}/user-keys"} if secret == key else {"/etc/moehost/tiny/api-keys"}
            rendered = "users" if secret == key else "services"
            others = {f"/run/moehost-gateway-keys/{rendered}", "/run/moehost-gateway/caddy/autosave.json"}
            assert {path for path in found if not path.startswith("/run/credentials/")} == own | others
        for pid in node.run("pgrep -d ' ' .").split():
            shown = node.run(f"tr '\\0' ' ' </proc/{pid}/cmdline; tr '\\0' ' ' </proc/{pid}/environ || true")
            assert key not in shown
            assert service not in shown

    def test_an_engine_that_is_away(self, node, clients):
        key = clients.keys["alice"]
        node.run(f"systemctl stop {node.unit}")
        try:
            answer = clients.chat(key)
            assert (answer.status, answer.code) == (503, "not_running")
            assert "127.0.0.1" not in answer.body
        finally:
            node.run(f"systemctl start {node.unit}")
        assert key not in node.run(f"journalctl --no-pager --output cat --unit {UNIT}")
        assert clients.chat(key).status == 200


class TestKeys:
    def test_a_list_shows_no_key(self, node, clients):
        listed = json.loads(moehost(node, "keys", "list", "--json").stdout)
        assert [each["name"] for each in listed] == ["alice"]
        assert set(listed[0]) == {"name", "created", "sha256"}
        assert len(listed[0]["sha256"]) == 12

    def test_a_name_that_is_taken_and_one_that_is_unknown(self, node, clients):
        added, revoked = moehost(node, "keys", "add", "alice"), moehost(node, "keys", "revoke", "bob")
        assert (added.returncode, added.stdout) == (2, "")
        assert "add another name" in added.stderr
        assert revoked.returncode == 2
        assert "'bob' has no key; these have: alice" in revoked.stderr

    def test_the_key_is_nowhere_but_on_standard_output(self, node):
        done = moehost(node, "keys", "add", "dave")
        try:
            key = done.stdout.strip()
            assert len(key) == 43
            assert key not in done.stderr
            assert key not in moehost(node, "keys", "list").stdout
        finally:
            moehost(node, "keys", "revoke", "dave")
        assert key not in node.run("cat /etc/moehost/gateway/user-keys /run/moehost-gateway-keys/users")


@pytest.mark.usefixtures("restored")
class TestOtherSettings:
    def test_a_port_of_another_program(self, node, clients):
        before = node.run(
            f"sha256sum {FOLDER}/* /etc/systemd/system/{UNIT}; systemctl show --property MainPID {UNIT}"
        )
        node.run("systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 9443")
        try:
            node.run("for i in $(seq 50); do ss -Hltn 'sport = :9443' | grep -q . && exit 0; sleep 0.2; done; exit 1")
            deploy = node.deploy(with_gateway(node, port=9443))
        finally:
            node.run("systemctl stop squatter")
        assert deploy.returncode == 1
        assert "gateway.port: 9443 is taken by python3" in deploy.stderr
        after = node.run(f"sha256sum {FOLDER}/* /etc/systemd/system/{UNIT}; systemctl show --property MainPID {UNIT}")
        assert after == before

    def test_a_web_page_that_is_allowed(self, node, clients):
        pid, key = main_pid(node, UNIT), clients.keys["alice"]
        deployed = changes(node.deploy(with_gateway(node, allowed_origins=[PAGE], max_body_mib=1)))
        assert deployed == ["Gateway | Configure it", "Gateway | Run it, until it answers"]
        assert main_pid(node, UNIT) == pid  # a reload
        asked = (f"Origin: {PAGE}", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-a")
        preflight = clients.ask("/v1/chat/completions", None, "--request", "OPTIONS", headers=asked)
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert preflight.headers["access-control-allow-headers"] == "x-a"
        assert preflight.headers["access-control-allow-methods"] == "GET, HEAD, POST"
        answer = clients.chat(key, headers=(f"Origin: {PAGE}",))
        assert answer.status == 200
        assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (PAGE, "Origin")
        assert "access-control-allow-credentials" not in answer.headers
        # A page without a key reads that it needs one, another one nothing.
        assert clients.chat("", headers=(f"Origin: {PAGE}",)).headers["access-control-allow-origin"] == PAGE
        for other in ("https://evil.example", f"{PAGE}.evil.example", f"{PAGE}:444", "http://chat.home.arpa"):
            assert clients.chat(key, headers=(f"Origin: {other}",)).status == 403
        two = (f"Origin: {PAGE}", "Origin: https://evil.example")
        assert clients.chat(key, "--http1.1", headers=two).status == 403

    def test_networks_that_may_not_connect(self, node, clients):
        changes(node.deploy(with_gateway(node, allow_from=["192.0.2.0/24"])))
        words = ("curl", "--silent", "--insecure", "--max-time", "5", f"https://{clients.address}:{PORT}/health")
        assert clients.outside.run(*words).returncode != 0
        changes(node.deploy())
        assert clients.outside.run(*words).returncode == 0

    def test_a_certificate_and_keys_of_the_owners(self, node, clients, tmp_path):
        certificate, key, users = tmp_path / "own.pem", tmp_path / "own.key", tmp_path / "users"
        subject = ("-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}")
        made = ("-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2")
        words = ["openssl", "req", *made, *subject, "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(words, check=True, capture_output=True)
        users.write_text(f"# mine\nerin {OWNERS_KEY}\n")
        wish = {
            "certificate_file": str(certificate),
            "certificate_key_file": str(key),
            "user_keys_file": str(users),
        }
        settings = with_gateway(node, **wish)
        deploy = node.deploy(settings)
        changes(deploy)
        assert OWNERS_KEY not in deploy.stdout + deploy.stderr
        own = Clients(clients.outside, clients.address, certificate)
        assert own.chat(OWNERS_KEY).status == 200
        assert own.ask("/v1/models", clients.keys["alice"]).status == 401
        assert node.run(f"stat -c '%a %U:%G' {FOLDER}/certificate.key") == "640 root:moehost-gateway"
        assert node.run(f"stat -c '%a %U:%G' {FOLDER}/user-keys-of-the-owner") == "600 root:root"
        assert changes(node.deploy(settings)) == []
        # Keys come from that file alone.
        words = [
            "moehost",
            "keys",
            "add",
            "frank",
            f"@podman/{node.name}",
            "--inventory",
            str(node.inventory(settings)),
        ]
        refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert refused.returncode == 2
        assert f"its keys come from {users} (gateway.user_keys_file); edit that and deploy" in refused.stderr
        # A renewed certificate is a reload.
        pid = main_pid(node, UNIT)
        before = certificate.read_text()
        subprocess.run(
            [*words_of(key), *subject, "-days", "3", "-out", str(certificate)], check=True, capture_output=True
        )
        assert certificate.read_text() != before
        changes(node.deploy(settings))
        assert main_pid(node, UNIT) == pid
        assert own.chat(OWNERS_KEY).status == 200

    def test_a_file_of_keys_with_mistakes(self, node, tmp_path):
        users = tmp_path / "users"
        users.write_text("good a-key-of-the-owners-0123456789\nshort abc\n")
        deploy = node.deploy(with_gateway(node, user_keys_file=str(users)))
        assert deploy.returncode == 1
        assert f"gateway.user_keys_file: {users}:2 has 3 characters" in deploy.stderr
        assert "Starting operation" not in deploy.stderr

    def test_a_start_that_fails_shows_the_journal(self, node):
        folder = f"/etc/systemd/system/{UNIT}.d"
        broken = "[Service]\nExecStartPre=/bin/sh -c 'echo broken on purpose; exit 1'\n"
        node.run(f'mkdir -p {folder} && printf "{broken}" >{folder}/broken.conf && systemctl daemon-reload')
        node.run(f"systemctl stop {UNIT}")
        try:
            deploy = node.deploy()
        finally:
            node.run(f"rm -r {folder} && systemctl daemon-reload")
        assert deploy.returncode == 1
        assert f"{UNIT} does not restart; its last words:" in deploy.stderr
        assert "broken on purpose" in deploy.stderr, deploy.stderr

    def test_a_file_that_caddy_refuses_replaces_nothing(self, node, clients):
        key, before = clients.keys["alice"], node.run(f"sha256sum {FOLDER}/Caddyfile")
        node.run("mv /usr/bin/caddy /usr/bin/caddy.kept")
        stub = [
            "#!/bin/sh",
            '[ "$1" != validate ] || { cat >/dev/null; echo refused on purpose >&2; exit 1; }',
            'exec "$0.kept" "$@"',
        ]
        lines = " ".join(f"'{line}'" for line in stub)
        node.run(f"printf '%s\\n' {lines} >/usr/bin/caddy && chmod 755 /usr/bin/caddy")
        try:
            deploy = node.deploy(with_gateway(node, max_body_mib=2))
        finally:
            node.run("mv /usr/bin/caddy.kept /usr/bin/caddy")
        assert deploy.returncode == 1
        assert "refused on purpose" in deploy.stderr, deploy.stderr
        assert node.run(f"sha256sum {FOLDER}/Caddyfile") == before
        assert clients.ask("/v1/models", key).status == 200

    def test_a_port_below_1024_and_an_address_for_a_name(self, node, clients, address):
        changes(node.deploy(with_gateway(node, host=address, port=443)))
        assert node.run("ps -o user= -p $(pgrep caddy)").startswith("moehost-")
        words = ("curl", "--silent", "--cacert", str(clients.ca), f"https://{address}/health")
        assert '"ok"' in clients.outside.run(*words).stdout

    def test_one_that_is_no_longer_described_goes_and_comes_back_with_its_keys(self, node, clients):
        settings = copy.deepcopy(node.settings)
        del settings["gateway"]
        authority = node.run("sha256sum /var/lib/moehost-gateway/caddy/pki/authorities/local/root.crt")
        gone = changes(node.deploy(settings))
        assert gone == ["Gateway | Take away a gateway that is no longer described", *GUARD]
        assert node.run(f"ls {FOLDER}") == "user-keys"
        assert "not-found" in node.run(f"systemctl is-enabled {UNIT} 2>&1 || true")
        assert node.run("pgrep -c caddy || true") == "0"
        assert changes(node.deploy(settings)) == []
        none = subprocess.run(
            ["moehost", "keys", "list", f"@podman/{node.name}", "--inventory", str(node.inventory(settings))],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert none.returncode == 2
        assert "has no gateway; write gateway: {'host': ...}" in none.stderr
        changes(node.deploy())
        assert node.run("sha256sum /var/lib/moehost-gateway/caddy/pki/authorities/local/root.crt") == authority
        assert clients.chat(clients.keys["alice"]).status == 200


def words_of(key):
    """openssl's words for a certificate of a key that is there."""
    return ["openssl", "req", "-x509", "-key", str(key)]
