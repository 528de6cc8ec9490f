"""A node comes to another release of its engine, or stays with the one it has; and it goes back."""

import json
import re
import threading
import time

import pytest

from tests.fixtures.node import changes

pytestmark = [pytest.mark.stand_in, pytest.mark.timed]
# What a start and its warm-up may take at most on a machine that is busy, beside the time that the server needs.
SLACK_S = 6


def stream(node, tokens, answers):
    """Ask for a long answer that is streamed, and keep all of it."""
    body = json.dumps({"prompt": "once", "n_predict": tokens, "stream": True, "ignore_eos": True, "stop": []})
    answers.append(
        node.run(
            'curl --silent --fail --no-buffer --header "Authorization: Bearer $(cat /etc/moehost/tiny/api-keys)" '
            f"--data '{body}' http://127.0.0.1:8080/completion"
        )
    )


@pytest.fixture(scope="module", autouse=True)
def good(engine):
    """The tests begin with the good engine, and find it again."""
    changes(engine.deploy())
    yield
    changes(engine.deploy())


@pytest.fixture(scope="module")
def restart_s(node, engine, watch, good):
    """How long the service is away for one restart, measured here."""
    seen = watch()
    node.run(f"systemctl restart {node.unit}")
    return seen.longest_gap_s()


def test_a_better_engine_is_switched_to_and_costs_one_restart(node, engine, watch, restart_s, figures):
    old = engine.link("current")
    seen = watch()
    changes(engine.deploy("better"))
    gap_s = seen.longest_gap_s()
    figures["switch"] = f"{gap_s:.1f} s without an answer (one restart: {restart_s:.1f} s)"
    assert engine.link("previous") == old
    assert engine.serving == engine.link("current") != old
    assert engine.build["commit"] == engine.commits["better"]
    assert gap_s < restart_s + SLACK_S
    assert changes(engine.deploy("better")) == []


def test_engine_list(engine):
    shown = engine.command("list")
    assert shown.returncode == 0, shown.stderr
    for link in ("current", "previous"):
        assert re.search(rf"^ *{link}\b.*{re.escape(engine.link(link))}", shown.stdout, re.MULTILINE)
    data = json.loads(engine.command("list", "--json").stdout)
    assert [each["name"] for each in data["releases"]] == engine.releases
    assert data["current"] == engine.link("current")


def test_engine_rollback_and_forth(engine, figures):
    new, old = engine.link("current"), engine.link("previous")
    started = time.monotonic()
    back = engine.command("rollback")
    figures["rollback"] = f"{time.monotonic() - started:.1f} s"
    assert back.returncode == 0, back.stderr
    assert f"{old} is current" in back.stderr
    assert engine.serving == old == engine.link("current")
    assert engine.link("previous") == new
    forth = engine.command("use", new[:12])
    assert forth.returncode == 0, forth.stderr
    assert engine.serving == new


def test_engine_use_of_what_is_not_there(node, engine):
    before = node.process
    done = engine.command("use", "ffff")
    assert done.returncode == 1
    assert "the release ffff is not there; there are: " in done.stderr
    assert "Traceback" not in done.stderr
    assert node.process == before


FAULTS = {
    "crash-at-start": "does not start with",
    "hang-in-load": "does not start with",
    "garbage": "answers the canary with rubbish",
    "slow": "less than the 80% of engine.canary_share",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_is_not_good_enough_is_gone_back_from(node, engine, watch, restart_s, fault):
    old = engine.link("current")
    seen = watch()
    deploy = engine.deploy(fault, service={"start_timeout_s": 10})
    gap_s = seen.longest_gap_s()
    assert deploy.returncode == 1
    reason = next(line for line in deploy.stderr.splitlines() if "does not become current" in line)
    print(f"{fault}: {gap_s:.1f} s without an answer; {reason.strip()}")
    assert FAULTS[fault] in reason and f"{old} serves" in reason
    assert engine.link("current") == engine.serving == old
    assert node.run("ls /run/systemd/system.control 2>/dev/null || true") == ""
    # The trial ends with the start's own limit, then the old one starts.
    assert gap_s < 2 * restart_s + 10 + 2 * SLACK_S
    assert node.run(f"systemctl is-active {node.unit}") == "active"


def test_an_engine_that_lacks_a_flag_is_not_even_tried(node, engine, watch):
    before, old = node.process, engine.link("current")
    deploy = engine.deploy("drops-flag")
    assert deploy.returncode == 1
    assert f"does not become current, {old} serves on: services[0]: ik" in deploy.stderr
    assert "does not know --jinja" in deploy.stderr
    assert node.process == before
    assert engine.link("current") == old


def test_a_switch_waits_for_requests_and_drops_none(node, engine):
    answers: list[str] = []
    asking = threading.Thread(target=stream, args=(node, 1500, answers))
    asking.start()
    time.sleep(1)
    deploy = engine.deploy("better" if engine.build["commit"] == engine.commits["good"] else "good")
    asking.join()
    changes(deploy)
    assert "waits for 1 request(s) to end" in deploy.stderr
    assert len(re.findall(r"^data: ", answers[0], re.MULTILINE)) >= 1500


def test_three_releases_stay(node, engine):
    changes(engine.deploy("good"))
    assert len(engine.releases) == 3
    pruned = engine.command("prune", "--keep", "2")
    assert pruned.returncode == 0, pruned.stderr
    assert len(engine.releases) == 2
    assert {engine.link("current"), engine.link("previous")} == set(engine.releases)
    assert "2 releases stay" in pruned.stderr
