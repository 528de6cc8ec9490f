"""What an owner changes in the inventory happens, once."""

import pytest

from tests.fixtures.node import changes

SERVICE = ["Service | Run tiny, warm"]


@pytest.fixture(scope="module", autouse=True)
def as_before(node):
    yield
    node.run("rm /etc/moehost/tiny/api-keys")
    changes(node.deploy())


def test_a_changed_setting_restarts_the_service_once(node):
    before, settings = node.process, node.changed_settings(context=4096)
    assert changes(node.deploy(settings)) == SERVICE
    assert node.process != before
    assert "-c 4096" in node.run(f"systemctl show --property ExecStart {node.unit}")
    assert changes(node.deploy(settings)) == []


def test_a_restart_that_a_broken_run_owes_is_made_up_for(node):
    # The unit is written and loaded, but the process was started with another: a run that ended between the two.
    path = f"/etc/systemd/system/{node.unit}"
    node.run(f"cp {path} /tmp/wanted && sed -i 's/^Environment=MOEHOST_GENERATION=.*/&-other/' {path}")
    node.run(f"systemctl daemon-reload && systemctl restart {node.unit}")
    node.run(f"mv /tmp/wanted {path} && systemctl daemon-reload")
    before = node.process
    assert changes(node.deploy()) == SERVICE
    assert node.process != before
    assert changes(node.deploy()) == []


def test_a_new_key_of_the_owner_is_used(node, tmp_path):
    (tmp_path / "keys").write_text("a-key-of-the-owner-0123456789\n")
    settings = node.changed_settings(api_keys_file=str(tmp_path / "keys"))
    assert "Service | Have an API key for tiny" in changes(node.deploy(settings))
    header = "Authorization: Bearer a-key-of-the-owner-0123456789"
    node.run(f"curl --silent --fail --header '{header}' http://127.0.0.1:8080/props")
    assert changes(node.deploy(settings)) == []


def test_a_service_can_be_renamed_and_taken_away(node):
    assert changes(node.deploy(node.changed_settings(name="renamed")))
    units = node.run("systemctl list-units --all --plain --no-legend 'llama-server-*'")
    assert "llama-server-renamed.service loaded active" in " ".join(units.split())
    assert "llama-server-tiny" not in units
    assert changes(node.deploy(node.changed_settings(name="renamed"))) == []
    changes(node.deploy())
    assert "renamed" not in node.run("ls /etc/systemd/system")


def test_a_stopped_service_is_started(node):
    node.run(f"systemctl stop {node.unit}")
    assert changes(node.deploy()) == SERVICE
