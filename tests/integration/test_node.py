"""What a provisioned node is, seen from outside."""

import itertools
import json
import os
import re

import pytest
import yaml

with open(os.environ["MOLECULE_INVENTORY_FILE"]) as _file:  # noqa: PTH123
    testinfra_hosts = [f"podman://{name}" for name in yaml.safe_load(_file)["all"]["hosts"]]

UNIT = "llama-server-tiny"
URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def key(host):
    return host.file("/etc/moehost/tiny/api-keys").content_string.strip()


def post(host, path, body, header=""):
    """Status and answer of a request that is made on the node."""
    option = f"--header '{header}'" if header else ""
    done = host.run(
        f"curl --silent --max-time 60 --write-out '\\n%{{http_code}}' {option} "
        f"--header 'Content-Type: application/json' --data '{json.dumps(body)}' {URL}{path}"
    )
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), answer


def test_service_runs_now_and_at_boot(host):
    service = host.service(UNIT)
    assert service.is_running
    assert service.is_enabled


def test_unit_is_valid_and_hardened(host):
    path = f"/etc/systemd/system/{UNIT}.service"
    verify = host.run(f"systemd-analyze verify {path}")
    assert (verify.rc, verify.stdout + verify.stderr) == (0, "")
    # The threshold is in tenths of the exposure level.
    security = host.run(f"systemd-analyze security --offline=yes --threshold=20 --no-pager {path}")
    assert security.rc == 0, security.stdout


def test_only_loopback_listens(host):
    sockets = host.check_output("ss --no-header --listening --tcp --numeric")
    assert {line.split()[3] for line in sockets.splitlines()} == {"127.0.0.1:8080"}


def test_chat_completion_answers(host, key):
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}
    status, answer = post(host, "/v1/chat/completions", body, f"Authorization: Bearer {key}")
    assert status == 200, answer
    answer = json.loads(answer)
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["model"] == "tiny"


@pytest.mark.parametrize("header", ["", "Authorization: Bearer wrong", "X-Api-Key: wrong"])
def test_no_answer_without_the_key(host, header):
    status, _ = post(host, "/v1/chat/completions", {"messages": []}, header)
    assert status == 401


def test_slots_of_others_are_not_shown(host, key):
    request = f"--header 'Authorization: Bearer {key}' {URL}/slots"
    assert host.run(f"curl --silent --output /dev/null --write-out '%{{http_code}}' {request}").stdout == "501"


def test_key_is_secret(host, key):
    keys = host.file("/etc/moehost/tiny/api-keys")
    assert (keys.user, keys.group, keys.mode) == ("root", "root", 0o600)
    assert len(key) >= 40
    pid = host.check_output(f"systemctl show --property MainPID --value {UNIT}")
    for place in (f"/proc/{pid}/cmdline", f"/proc/{pid}/environ", "/etc/moehost/tiny/plan.json"):
        assert key not in host.file(place).content_string
    assert key not in host.check_output("journalctl --no-pager --output cat")


def test_server_runs_as_nobody_of_importance(host):
    pid = host.check_output(f"systemctl show --property MainPID --value {UNIT}")
    process = host.process.get(pid=int(pid))
    assert process.user == "moehost"
    assert process.nice == -5
    status = host.file(f"/proc/{pid}/status").content_string
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_warm_up_came_before_ready(host):
    journal = host.check_output(f"journalctl --no-pager --output cat --unit {UNIT}")
    start, _, _ = journal.rpartition("Started llama-server-tiny.service")
    # A short prompt, half a ubatch, more than one ubatch; the engine's lines beside those of the warm-up itself.
    lengths = (16, 256, 528)
    for tokens in lengths:
        assert f"/ {tokens:5d} tokens" in start, f"no warm-up with {tokens} tokens before the unit was active"
    rate = r"\d+[.]\d tok/s"
    for number, tokens in itertools.product((1, 2), lengths):
        line = rf"^warm-up: round {number}: {tokens} tokens: prompt {rate}, decode {rate}, \d+[.]\d\d s$"
        assert re.search(line, start, re.MULTILINE), line
    assert re.search(r"^warm-up: \d+ tokens: first \d+[.]\d\d s, then \d+[.]\d\d s", start, re.MULTILINE)


def test_release_is_current_and_documented(host):
    current = host.file("/opt/moehost/engine/current")
    assert current.is_symlink
    build = json.loads(host.file(f"{current.linked_to}/build.json").content_string)
    server = host.file(f"{current.linked_to}/bin/llama-server")
    assert build["sha256"] == host.file(server.linked_to).sha256sum
    assert build["version"] in host.run(f"{server.linked_to} --version").stderr


def test_model_is_verified_in_the_store(host):
    check = host.run(
        "PYTHONPATH=/usr/local/lib/moehost python3 -B -m moehost.fetch --verify /srv/models/tiny-qwen35moe"
    )
    assert check.rc == 0, check.stderr
    manifest = json.loads(host.file("/srv/models/tiny-qwen35moe/manifest.json").content_string)
    assert manifest["architecture"] == "qwen35moe"


def test_apt_and_needrestart_leave_the_service_alone(host):
    settings = host.check_output("apt-config dump")
    assert 'Unattended-Upgrade::Package-Blacklist:: "llama[.]cpp"' in settings
    assert 'DPkg::Lock::Timeout "600"' in settings
    assert host.file("/etc/needrestart/conf.d/60-moehost.conf").contains("qr(^llama-server-)")
    assert host.run("perl -ce 'our %nrconf; do q(/etc/needrestart/conf.d/60-moehost.conf) or die'").rc == 0


def test_nothing_failed(host):
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
