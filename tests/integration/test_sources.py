"""The node fetches a split model from a hub, is cut off, goes on, and serves it."""

import threading
import time

import pytest

from moehost import synthetic
from tests.fixtures.hub import REVISION, on_node
from tests.fixtures.node import changes

TOKEN = "hf_a-token-that-must-not-be-seen"


@pytest.fixture(scope="module")
def hub(node, tmp_path_factory):
    """Address of a hub in the node that holds a model in three shards and wants a token."""
    folder = tmp_path_factory.mktemp("hub")
    synthetic.write(folder / "split.gguf", synthetic.Shape(shards=3, seed=1))
    with on_node(node, folder, TOKEN) as url:
        yield url
    node.run("rm -rf /srv/models/split")
    changes(node.deploy())


@pytest.fixture
def settings(node, hub, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    model = {"name": "split", "source": f"hf://OWNER/REPO/tiny@{REVISION}"}
    return node.changed_settings(model=model) | {"hf_endpoint": hub, "hf_token_file": str(tmp_path / "token")}


def test_a_fetch_that_is_killed_goes_on_and_the_model_is_served(node, settings):
    before = node.process

    def kill():
        # Once some bytes are there; the deploy that watches must fail with a reason, and the old model go on.
        for _ in range(200):
            held = node.run("du -sk /srv/models/.incoming/split 2>/dev/null | cut -f1 || true")
            if int(held or 0) > 4000:
                node.run("systemctl kill --signal=KILL moehost-fetch-split.service")
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    failed = node.deploy(settings)
    killer.join()
    assert failed.returncode == 1, "the fetch was never killed"
    assert "model split:" in failed.stderr
    assert node.process == before
    assert "split" not in node.run("ls /srv/models").split()

    sent_before = node.run("du -sk /srv/models/.incoming/split | cut -f1")
    second = node.deploy(settings)
    assert int(sent_before) > 4000
    assert "Models | Have split in the store" in changes(second)
    assert "split: download" in second.stderr, "no progress was shown"
    assert node.run("ls /srv/models/split").split() == [
        "headers.json",
        "manifest.json",
        *(f"split-0000{n}-of-00003.gguf" for n in (1, 2, 3)),
        "tensors.json",
    ]
    assert "/srv/models/split/split-00001-of-00003.gguf" in node.run(
        f"systemctl show --property ExecStart {node.unit}"
    )
    assert changes(node.deploy(settings)) == []


def test_the_token_is_nowhere_to_be_seen(node, settings):
    changes(node.deploy(settings))
    assert node.run("stat -c '%a %U' /etc/moehost/hub-token") == "600 root"
    assert node.run(f"grep -rl {TOKEN} /etc /srv/models /var/log /run/systemd/transient 2>/dev/null || true") == (
        "/etc/moehost/hub-token"
    )
    assert TOKEN not in node.run("journalctl --no-pager --output cat")
