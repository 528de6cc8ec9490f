"""What must not work does not, for the right reason, and the service that runs goes on."""

import hashlib
import os
import shutil

import pytest

from tests.fixtures.node import ROOT, changes

MODEL = ROOT / ".sandbox/tiny-qwen35moe.gguf"


@pytest.fixture(autouse=True)
def service_goes_on(node):
    before = node.process
    assert "ActiveState=active" in before
    yield
    assert node.process == before


def refused(node, settings):
    """The talk of a deploy that must fail."""
    deploy = node.deploy(settings)
    assert deploy.returncode == 1, deploy.stdout
    assert "Traceback" not in deploy.stderr, deploy.stderr
    return deploy.stderr


def model(name, source, **more):
    return {"name": name, "source": source, **more}


def test_unknown_setting(node):
    said = refused(node, node.changed_settings(contxt=4096))
    assert "services[0].contxt: unknown setting; did you mean 'context'?" in said
    assert "Starting operation" not in said


def test_unknown_flag(node):
    said = refused(node, node.changed_settings(server_args=["--no-mmapp"]))
    assert "services[0]: llama.cpp" in said
    assert "does not know --no-mmapp" in said


def test_value_that_the_engine_refuses(node):
    said = refused(node, node.changed_settings(server_args=["--ubatch-size", "many"]))
    assert "refuses these arguments" in said


def test_port_of_another_program(node):
    node.run("systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 8099")
    try:
        node.run("for i in $(seq 50); do ss -Hltn 'sport = :8099' | grep -q . && exit 0; sleep 0.2; done; exit 1")
        said = refused(node, node.changed_settings(port=8099))
        assert "services[0].port: 8099 is taken by python3" in said
    finally:
        node.run("systemctl stop squatter")


def test_wrong_checksum(node):
    wrong = model("other", "file:.sandbox/tiny-qwen35moe.gguf", sha256={MODEL.name: "0" * 64})
    said = refused(node, node.changed_settings(model=wrong))
    assert "model other:" in said
    assert "sha256" in said
    assert node.run("ls /srv/models") == "tiny-qwen35moe"


def test_wrong_checksum_leaves_the_old_model(node):
    manifest = node.run("cat /srv/models/tiny-qwen35moe/manifest.json")
    wrong = model("tiny-qwen35moe", "file:.sandbox/tiny-qwen35moe.gguf", sha256={MODEL.name: "0" * 64})
    refused(node, node.changed_settings(model=wrong))
    assert node.run("cat /srv/models/tiny-qwen35moe/manifest.json") == manifest


def test_file_that_is_no_model(node, tmp_path):
    (tmp_path / "text.gguf").write_text("this is no model\n" * 1000)
    said = refused(node, node.changed_settings(model=model("text", f"file:{relative(tmp_path)}/text.gguf")))
    assert "GGUF" in said


def test_model_that_is_cut_off(node, tmp_path):
    shutil.copy(MODEL, tmp_path / "cut.gguf")
    with (tmp_path / "cut.gguf").open("r+b") as file:
        file.truncate(MODEL.stat().st_size // 2)
    said = refused(node, node.changed_settings(model=model("cut", f"file:{relative(tmp_path)}/cut.gguf")))
    assert "model cut:" in said


def test_no_space_on_the_disk(node):
    # A real file system that is too small, not a setting that says so.
    node.run("mkdir -p /srv/small && mount -t tmpfs -o size=6M tmpfs /srv/small")
    try:
        node.run("cp /srv/models/tiny-qwen35moe/tiny-qwen35moe.gguf /srv/big.gguf")
        big = model("big", "file:///srv/big.gguf")
        settings = node.changed_settings(model=big)
        settings |= {"models_dir": "/srv/small", "free_space_reserve_mib": 0}
        said = refused(node, settings)
        assert "/srv/small: lacks" in said
        assert "MiB" in said
        assert node.run("find /srv/small -name '*.gguf*'") == ""
    finally:
        node.run("umount /srv/small && rm -rf /srv/small /srv/big.gguf")
        # The guards and directories of that deploy were in order: tmpfiles.d named the other store.
        assert len(changes(node.deploy())) == 1


def test_local_file_that_is_not_there(node):
    said = refused(node, node.changed_settings(api_keys_file="/nonexistent/keys"))
    assert "services[0].api_keys_file: /nonexistent/keys is not a file on this computer" in said


def test_the_model_on_the_node_is_the_one_here(node):
    digest = node.run("sha256sum /srv/models/tiny-qwen35moe/tiny-qwen35moe.gguf").split()[0]
    assert digest == hashlib.sha256(MODEL.read_bytes()).hexdigest()


def test_afterwards_nothing_is_left_to_do(node):
    assert changes(node.deploy()) == []


def relative(path):
    """A path from the project's folder, since `file:` sources on this computer are relative."""
    return os.path.relpath(path, ROOT)
