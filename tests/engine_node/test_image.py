"""The container image of a release: the same recipe, proven, pushed once, and gone with its release.

ENGINE_NODE names a sandbox (`moehost sandbox up --name ...`). Podman is real in it, with what a container allows: no
containers are started, files lie on FUSE. The engine is the stand-in, the registry Debian's, on loopback.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from moehost import sandbox
from tests.fixtures.node import ROOT, changes
from tests.stand_in import repository

NAME = os.environ.get("ENGINE_NODE", "moehost-engine")
URL = "/srv/git/engine-of-images"
IMAGE = "localhost/moehost/ik_llama"
REGISTRY = "127.0.0.1:5000"
PUSH = f"{REGISTRY}/home/ik_llama"
MANIFEST = "Accept: application/vnd.oci.image.manifest.v1+json"
ASK = f"curl --silent --fail --retry 20 --retry-connrefused --user owner:secret -H '{MANIFEST}' http://{REGISTRY}"
STORAGE = """\
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
[storage.options.overlay]
mount_program = "/usr/bin/fuse-overlayfs"
"""
INSECURE = f"""\
[[registry]]
location = "{REGISTRY}"
insecure = true
"""
# What a deploy runs: the role as deploy.py does, or the image alone.
ROLE = """\
from roles.base import base
from roles.ik_llama import ik_llama
from roles.node import this_node

if node := this_node():
    base(node)
    ik_llama(node)
"""
ALONE = """\
from roles.ik_llama.image import image
from roles.node import this_node

if node := this_node():
    image(name="Engine | Make an image", engine=node.engine)
"""
MAKE = "Engine | Make a container image of the next release"

pytestmark = pytest.mark.skipif(
    not shutil.which("podman") or sandbox.state(NAME) != "running",
    reason=f"needs a sandbox: moehost sandbox up --name {NAME}",
)


class Images:
    """A node that makes images."""

    def __init__(self, folder) -> None:
        self.folder, self.commits = folder, repository.make(folder / "engine")

    def run(self, command: str) -> str:
        """What a shell command prints on the node; it must succeed."""
        words = ["podman", "exec", "--env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", NAME, "sh", "-c", command]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def start(self, commit="good", deploy=ROLE, more=(), **image) -> subprocess.Popen:
        """Begin a deploy."""
        engine = {"url": URL, "commit": self.commits[commit], "cuda": "off", "image": image}
        inventory, program = self.folder / "hosts.py", self.folder / "deploy.py"
        inventory.write_text(f"nodes = [({'@podman/' + NAME!r}, {{'engine': {engine!r}}})]\n")
        program.write_text(deploy)
        command = ["pyinfra", str(inventory), str(program), "--yes", "--json", *more]
        env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def deploy(self, *arguments, **settings) -> subprocess.CompletedProcess:
        """A deploy with the engine of a commit."""
        process = self.start(*arguments, **settings)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    @property
    def next(self) -> str:
        """The release that is next."""
        return self.run("basename $(readlink /opt/moehost/engine/next)")

    @property
    def names(self) -> list[str]:
        """Names of all images."""
        return sorted(self.run("podman images --format '{{.Repository}}:{{.Tag}}'").split())

    def inspect(self, release: str) -> dict:
        """What Podman says of a release's image."""
        return json.loads(self.run(f"podman image inspect {IMAGE}:{release}"))[0]

    def inside(self, release: str, command: str) -> str:
        """What a command prints in an image, as the image's user."""
        user = self.inspect(release)["Config"]["User"]
        name = f"{IMAGE}:{release}"
        return self.run(
            f"chroot --userspec={user} $(podman image mount {name}) {command} 2>&1; "
            f"podman image unmount {name} >/dev/null"
        )

    def held(self) -> str:
        """The pid of the Ninja in the image's stage `build`, once it is there; it is stopped until `kill -CONT`."""
        active = "systemctl --quiet is-active moehost-image"
        return self.run(
            f"for n in $(seq 6000); do {active} && pid=$(pgrep -nx ninja) && kill -STOP $pid && echo $pid && exit; "
            "sleep 0.1; done; exit 1"
        )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The node, with storage that works in it, and no image."""
    node = Images(tmp_path_factory.mktemp("images"))
    before = node.run("readlink /opt/moehost/engine/next || true")
    node.run("apt-get -qq update && apt-get -qq --no-install-recommends install fuse-overlayfs >/dev/null")
    sandbox.execute(NAME, "install", "-D", "/dev/stdin", "/etc/containers/storage.conf", stdin=STORAGE)
    node.run(f"rm -rf {URL} && mkdir -p {URL}")
    subprocess.run(["podman", "cp", f"{node.folder / 'engine'}/.", f"{NAME}:{URL}"], check=True)
    node.run("! command -v podman >/dev/null || podman rmi --all --force; rm -rf /var/lib/moehost-image")
    yield node
    if before:
        node.run(f"ln -sfn {before} /opt/moehost/engine/next")


@pytest.fixture(scope="module")
def registry(images):
    """A registry of the node's own, not encrypted, that Podman is logged in to; returns what it says of a path."""
    folder = "/etc/containers/registries.conf.d"
    sandbox.execute(NAME, "install", "-D", "/dev/stdin", f"{folder}/loopback.conf", stdin=INSECURE)
    images.run("apt-get -qq --no-install-recommends install docker-registry apache2-utils >/dev/null 2>&1")
    images.run("htpasswd -Bbc /etc/docker/registry/htpasswd owner secret && systemctl restart docker-registry")
    images.run(f"{ASK}/v2/ && echo secret | podman login --username owner --password-stdin {REGISTRY}")
    return lambda path: json.loads(images.run(f"{ASK}/v2/home/ik_llama/{path}"))


@pytest.fixture(scope="module")
def made(images, figures):
    """The release that the image of `good` was made for."""
    started = time.monotonic()
    done = changes(images.deploy())
    figures["image"] = f"{time.monotonic() - started:.0f} s (with the release, where there was none)"
    assert MAKE in done
    return images.next


@pytest.fixture(scope="module")
def build(images, made):
    """The build.json in the image."""
    return json.loads(images.inside(made, "cat /opt/moehost/build.json"))


def test_the_labels_are_its_build_json(images, made, build):
    labels = images.inspect(made)["Config"]["Labels"]
    for key in ("release", "commit", "version", "compiler"):
        assert labels[f"moehost.{key}"] == build[key]
    for key in ("build_number", "options", "cuda", "architectures"):
        assert json.loads(labels[f"moehost.{key}"]) == build[key]
    standard = {"revision": build["commit"], "source": build["url"], "version": build["version"]}
    assert {key: labels[f"org.opencontainers.image.{key}"] for key in standard} == standard


def test_it_is_the_same_build_as_the_release(images, made, build, figures):
    native = json.loads(images.run(f"cat /opt/moehost/engine/releases/{made}/build.json"))
    for key in ("commit", "build_number", "version", "options", "isa", "architectures", "cuda", "url"):
        assert build[key] == native[key]
    assert build["release"] == made
    assert set(build["proofs"]) == set(native["proofs"])
    figures["compiler's time in the image"] = f"{build['duration_s']} s (native {native['duration_s']} s)"


def test_it_is_nobody_s_and_says_nothing_for_the_server(images, made):
    config = images.inspect(made)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/usr/local/bin/llama-server"]
    assert not config.get("Cmd")
    assert "Healthcheck" not in config and "Healthcheck" not in images.inspect(made)
    assert [each.partition("=")[0] for each in config["Env"]] == ["PATH"]


def test_the_program_in_it_is_the_one_that_was_proven(images, made, build):
    assert images.inside(made, "/usr/local/bin/llama-server --version").startswith(f"version: {build['version']}\n")
    sums = images.inside(made, "sha256sum " + " ".join(f"/usr/local/bin/{each}" for each in build["sha256"]))
    assert {path.rpartition("/")[2]: digest for digest, path in map(str.split, sums.splitlines())} == build["sha256"]


def test_nobody_but_root_may_change_it(images, made):
    found = images.inside(made, "find /usr/local /opt -not -user root -or -perm /022 -not -type l")
    assert found == ""


def test_nothing_else_is_left(images, made):
    base = json.loads(images.inside(made, "cat /opt/moehost/build.json"))["base"]
    assert images.names == [base, f"{IMAGE}:{made}"]
    assert images.run("podman ps --all --external --quiet") == ""
    assert images.run("podman images --quiet --filter dangling=true") == ""
    assert images.run("ls /var/lib/moehost-image") == ""


def test_a_second_run_asks_one_question(images, made, figures):
    run = images.deploy(deploy=ALONE, more=("-vvv",))
    assert changes(run) == []
    asked = run.stderr.split("--> Starting operation: ")[-1].count(">>> ")
    figures["no-op run of the image"] = f"{asked} remote command"
    assert asked == 1


def test_it_is_pushed_once(images, made, registry):
    assert changes(images.deploy(push=PUSH)) == [MAKE]
    assert registry("tags/list")["tags"] == [made]
    address, image, digest = images.run(f"cat /var/lib/moehost-image/pushed/{made}").split()[1:]
    assert (address, image) == (f"{PUSH}:{made}", images.inspect(made)["Id"])
    assert registry(f"manifests/{digest}")["config"]["digest"] == f"sha256:{image}"
    assert changes(images.deploy(push=PUSH)) == []


def test_a_registry_that_is_away_fails_and_the_next_run_pushes(images, made, registry):
    images.run("systemctl stop docker-registry && rm /var/lib/moehost-image/pushed/*")
    failed = images.deploy(push=PUSH)
    assert failed.returncode == 1
    assert "connection refused" in failed.stderr
    images.run(f"systemctl start docker-registry && {ASK}/v2/")
    assert changes(images.deploy(push=PUSH)) == [MAKE]


def test_an_image_goes_with_its_release_and_others_stay(images, made):
    before = images.names
    names = (f"{IMAGE}:gone", "localhost/moehost/base:old", "localhost/another:1", "localhost/another/ik_llama:gone")
    images.run(f"podman tag {IMAGE}:{made} {' '.join(names)}")
    images.run("cd /var/lib/moehost-image/pushed && echo gone a b c >gone")
    assert changes(images.deploy()) == [MAKE]
    assert images.names == sorted([*before, "localhost/another:1", "localhost/another/ik_llama:gone"])
    assert images.run("ls /var/lib/moehost-image/pushed") == made
    assert changes(images.deploy()) == []


def test_a_build_that_is_not_good_leaves_no_image(images, made):
    """The release is made up: a build with this fault never becomes one, and the image has to see it by itself."""
    fault, folder, before = images.commits["wrong-commit"], "/opt/moehost/engine/releases", images.names
    number = images.run(f"git -C {URL} -c safe.directory='*' rev-list --count {fault}")
    images.run(
        f"cp -a {folder}/{made} {folder}/faulty && ln -sfn releases/faulty /opt/moehost/engine/next && "
        f"sed -i 's/{images.commits['good']}/{fault}/; "
        f's/"build_number": .*,/"build_number": {number},/\' {folder}/faulty/build.json'
    )
    try:
        deploy = images.deploy("wrong-commit", deploy=ALONE)
        assert deploy.returncode == 1
        assert "no image: the stage build of the image fails: --version says " in deploy.stderr
        assert images.names == before
        assert images.run("podman images --quiet --filter dangling=true") == ""
    finally:
        images.run(f"ln -sfn releases/{made} /opt/moehost/engine/next && rm -rf {folder}/faulty")


def test_a_build_without_rights_outlives_its_deploy_and_is_made_anew_when_it_is_killed(images, made):
    deploy = images.start("better")
    pid = images.held()
    deploy.send_signal(signal.SIGKILL)
    deploy.communicate()
    status = images.run(f"cat /proc/{pid}/status")
    assert f"Uid:\t{images.run('id -u moehost-build')}\t" in status
    assert "CapEff:\t0000000000000000" in status
    assert "moehost-image.service" in images.run(f"cat /proc/{pid}/cgroup")
    assert images.run(f"ps -o ni= -p {pid}") == "19"
    assert images.run(f"nsenter -n -t {pid} ip -brief link | cut -d' ' -f1") == "lo"
    limit = int(images.run("systemctl show --value --property MemoryMax moehost-image"))
    assert limit < 1024 * int(images.run("sed -n 's/^MemTotal: *//p' /proc/meminfo").split()[0])

    begun = images.run("systemctl show --value --property InvocationID moehost-image")
    watching = images.start("better")
    time.sleep(10)
    assert watching.poll() is None
    assert images.run("systemctl show --value --property InvocationID moehost-image") == begun
    images.run("systemctl kill --signal KILL moehost-image")
    assert "does not build (signal)" in watching.communicate()[1]
    assert f"{IMAGE}:{images.next}" not in images.names

    assert MAKE in changes(images.deploy("better"))
    assert images.next != made
    assert f"{IMAGE}:{images.next}" in images.names
    assert images.run("podman ps --all --external --quiet") == ""
    assert images.run("ls /var/lib/moehost-image") == "pushed"
    assert changes(images.deploy("better")) == []
