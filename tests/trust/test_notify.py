"""The owner is told of what has failed for good: by ntfy, a webhook, mail; receivers on the node are stubs."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.node import ROOT, Node, changes
from tests.fixtures.waiting import until

PORT = 8998
TOPIC = "a-topic-that-nobody-guesses"
KEY = "sk-a-planted-key-0123456789abcdefghijklmnop"
UNIT = "llama-server-crashes.service"
REASON = 'CUDA error: out of "memory" \\\\o/'
RECEIVER = """\
import http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with open("/run/stub-received", "a") as file:
            print(json.dumps({"path": self.path, "heads": dict(self.headers), "body": body}), file=file)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass

http.server.HTTPServer(("127.0.0.1", %d), Handler).serve_forever()
"""
# It crashes three times within seconds, and says why among lines that nobody should see.
CRASHES = """\
[Unit]
StartLimitIntervalSec=10min
StartLimitBurst=3

[Service]
ExecStart=/usr/local/bin/stub-crash
Restart=on-failure
RestartSec=1
"""
CRASH = f"""\
#!/bin/sh
echo "loading"
printf '%s\\n' {shlex.quote(REASON)}
# Of a run the last line with a reason is told: these would be, were they not left out.
echo "error: api key {KEY} was read"
echo "error: Authorization: Bearer {KEY}"
exit 3
"""
SENDMAIL = """\
#!/bin/sh
# A stub of sendmail.
{ echo "arguments: $*"; cat; } >>/run/stub-mail
"""


def put(node: Node, path: str, text: str, mode: str = "644") -> None:
    """Write a file on the node."""
    command = ["podman", "exec", "-i", node.name, "install", "-D", "-m", mode, "/dev/stdin", path]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)


def received(node: Node) -> list[dict[str, Any]]:
    """What the receiver has got."""
    return [json.loads(line) for line in node.run("cat /run/stub-received 2>/dev/null || true").splitlines()]


def told_by(node: Node, **wish: str) -> dict[str, Any]:
    """The node's settings with this notification."""
    settings = copy.deepcopy(node.settings)
    if wish.get("by") != "mail":
        path = node.folder / "address"
        path.write_text(f"http://127.0.0.1:{PORT}/{TOPIC}\n")
        wish["url_file"] = str(path)
    settings["notify"] = wish
    return settings


def crash(node: Node) -> None:
    """Let the unit crash until systemd gives up, as if nobody had been told before."""
    put(node, "/usr/local/bin/stub-crash", CRASH, "755")
    put(node, f"/etc/systemd/system/{UNIT}", CRASHES)
    node.run("rm -rf /run/moehost-notify; systemctl daemon-reload")
    crash_again(node)
    until(lambda: node.run(f"systemctl is-active {UNIT} || true") == "failed")


def crash_again(node: Node) -> None:
    """Have the unit begin to crash once more; it may be gone before its start is through."""
    node.run(f"systemctl reset-failed {UNIT} 2>/dev/null; systemctl start {UNIT} 2>/dev/null || true")


def is_quiet(node: Node) -> bool:
    """Whether nothing is being told just now."""
    return node.run("systemctl list-units --plain --no-legend --state activating 'moehost-notify@*'") == ""


@pytest.fixture
def receiver(node: Node) -> Iterator[None]:
    """A receiver on the node's loopback."""
    put(node, "/usr/local/lib/stub-receiver.py", RECEIVER % PORT)
    node.run(
        "rm -f /run/stub-received; systemd-run --quiet --unit=stub-receiver python3 /usr/local/lib/stub-receiver.py"
    )
    until(lambda: node.run(f"ss -Hltn sport = :{PORT}"))
    yield
    node.run("systemctl stop stub-receiver")


@pytest.fixture(scope="module", autouse=True)
def clean(node: Node) -> Iterator[None]:
    """Nothing of it is left on the node afterwards."""
    yield
    node.run(f"rm -f /etc/systemd/system/{UNIT} /usr/local/bin/stub-crash /usr/local/lib/stub-receiver.py")
    node.run("systemctl daemon-reload; systemctl reset-failed")
    changes(node.deploy())


def test_it_is_switched_on_without_touching_a_service(node: Node) -> None:
    before = node.process
    assert "Notification | Have failures of units told" in changes(node.deploy(told_by(node, by="webhook")))
    assert changes(node.deploy(told_by(node, by="webhook"))) == []
    assert node.process == before
    assert (
        node.run(f"systemctl show --property OnFailure --value {node.unit}") == f"moehost-notify@{node.unit}.service"
    )
    # What tells does not tell of itself.
    assert node.run("systemctl show --property OnFailure --value moehost-notify@x.service") == ""
    node.run("systemd-analyze security --offline=yes --threshold=20 moehost-notify@x.service >/dev/null")


def test_the_address_is_roots_alone(node: Node) -> None:
    assert node.run("stat -c '%a %U' /etc/moehost/notify/url") == "600 root"
    assert node.run(f"grep -rl {TOPIC} /etc/systemd /usr/local /run 2>/dev/null || true") in (
        "",
        "/run/stub-received",
    )


def test_a_crash_loop_is_one_message_with_the_reason_and_no_key(node: Node, receiver: None) -> None:
    crash(node)
    until(lambda: received(node))
    until(lambda: is_quiet(node))
    (message,) = received(node)
    assert message["path"] == f"/{TOPIC}"
    assert message["heads"]["Content-Type"] == "application/json"
    data = json.loads(message["body"])
    assert (data["host"], data["unit"], data["result"]) == (node.run("uname -n"), UNIT, "exit-code")
    # The end of the loop is told, and not its beginning.
    assert data["restarts"] == 3
    assert data["reason"] == REASON
    assert f"journalctl -u {UNIT}" in data["text"] and "moehost doctor" in data["text"]
    assert KEY not in message["body"] and "api key" not in message["body"]


def test_the_same_is_not_told_again_within_the_hour(node: Node, receiver: None) -> None:
    crash(node)
    until(lambda: received(node))
    crash_again(node)
    until(lambda: node.run(f"systemctl is-active {UNIT} || true") == "failed")
    until(lambda: is_quiet(node))
    assert len(received(node)) == 1
    node.run(f"touch -d '-61 min' /run/moehost-notify/{UNIT}")
    crash_again(node)
    until(lambda: len(received(node)) == 2)


def test_without_a_network_it_tries_again(node: Node) -> None:
    node.run("systemctl stop stub-receiver 2>/dev/null; rm -f /run/stub-received")
    crash(node)
    until(lambda: "Failed to connect" in node.run("journalctl --no-pager -o cat -n 20 -u 'moehost-notify@*'"))
    put(node, "/usr/local/lib/stub-receiver.py", RECEIVER % PORT)
    node.run("systemd-run --quiet --unit=stub-receiver python3 /usr/local/lib/stub-receiver.py")
    try:
        until(lambda: received(node), 60)
    finally:
        node.run("systemctl stop stub-receiver")


def test_another_unit_of_moehosts_is_told_too(node: Node, receiver: None) -> None:
    node.run("rm -rf /run/moehost-notify")
    command = "systemd-run --quiet --unit=moehost-fetch-stub.service sh -c 'echo cannot reach the hub; exit 1'"
    node.run(command)
    (message,) = until(lambda: received(node))
    assert json.loads(message["body"])["unit"] == "moehost-fetch-stub.service"
    assert json.loads(message["body"])["reason"] == "cannot reach the hub"
    node.run("systemctl reset-failed moehost-fetch-stub.service")


def test_the_address_is_in_no_argument_environment_or_journal(node: Node, receiver: None) -> None:
    """A curl that takes its time, looked at while it does."""
    put(
        node,
        "/run/slow-curl/curl",
        "#!/bin/sh\ntr '\\0' ' ' </proc/$$/cmdline; tr '\\0' ' ' </proc/$$/environ\n",
        "755",
    )
    seen = node.run(
        "CREDENTIALS_DIRECTORY=/etc/moehost/notify RUNTIME_DIRECTORY=/run/slow-curl PATH=/run/slow-curl:$PATH "
        "PYTHONPATH=/usr/local/lib/moehost /usr/local/libexec/moehost/notify webhook test; rm -r /run/slow-curl"
    )
    assert "--config /dev/fd/3" in seen
    assert TOPIC not in seen
    assert TOPIC not in node.run("journalctl --no-pager -u 'moehost-notify@*'")


def test_ntfy(node: Node, receiver: None) -> None:
    settings = told_by(node, by="ntfy")
    assert changes(node.deploy(settings))
    crash(node)
    (message,) = until(lambda: received(node))
    assert message["heads"]["Title"] == f"{node.run('uname -n')}: {UNIT} has failed"
    assert message["heads"]["Priority"] == "high"
    assert f"It says: {REASON}\n" in message["body"]
    assert KEY not in message["body"]


def test_a_try_by_command(node: Node, receiver: None) -> None:
    inventory = node.inventory(told_by(node, by="ntfy"))
    command = ["moehost", "notify", "test", f"@podman/{node.name}", "--inventory", str(inventory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (message,) = received(node)
    assert message["body"].startswith("This is a test.")
    node.run("systemctl stop stub-receiver")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not be sent by ntfy: curl: (7) Failed to connect" in done.stderr
    assert TOPIC not in done.stderr
    node.run("systemd-run --quiet --unit=stub-receiver sleep 60")


@pytest.mark.parametrize("address", ["ntfy.example.org/topic", "", 'https://x/"y', "https://one\nhttps://two"])
def test_an_address_that_is_none_is_refused(node: Node, address: str) -> None:
    settings = told_by(node, by="ntfy")
    (node.folder / "address").write_text(f"{address}\n")
    deploy = node.deploy(settings)
    assert deploy.returncode == 1
    assert "notify.url_file: holds no address" in deploy.stderr


def test_mail(node: Node) -> None:
    settings = told_by(node, by="mail", mail_to="you@home.arpa")
    deploy = node.deploy(settings)
    assert deploy.returncode == 1
    assert "notify.by: 'mail' needs /usr/sbin/sendmail; install an MTA" in deploy.stderr
    put(node, "/usr/sbin/sendmail", SENDMAIL, "755")
    try:
        assert changes(node.deploy(settings))
        assert changes(node.deploy(settings)) == []
        # The address of the way before is not kept.
        assert node.run("ls /etc/moehost/notify") == ""
        node.run(
            "rm -f /run/stub-mail; systemd-analyze security --offline=yes --threshold=30 moehost-notify@x.service"
        )
        # The stub writes where an MTA has its queue.
        put(node, "/usr/sbin/sendmail", SENDMAIL.replace("/run/", "/var/spool/"), "755")
        crash(node)
        mail = until(lambda: node.run("cat /var/spool/stub-mail 2>/dev/null || true"))
        assert mail.startswith("arguments: -t\nTo: you@home.arpa\nSubject: ")
        assert f"It says: {REASON}\n" in f"{mail}\n"
        assert KEY not in mail
    finally:
        node.run("rm -f /usr/sbin/sendmail /var/spool/stub-mail")


def test_taken_out_of_the_settings_it_is_away(node: Node) -> None:
    before = node.process
    assert "Notification | Take away what tells of failures" in changes(node.deploy())
    assert changes(node.deploy()) == []
    assert node.run("find /etc /usr/local -name '*notify*' -path '*moehost*'") == ""
    assert node.run("find /etc/systemd/system -name '*-.service.d' -empty") == ""
    assert node.run("getent passwd moehost-notify || true") == ""
    assert node.run(f"systemctl show --property OnFailure --value {node.unit}") == ""
    assert node.process == before
