"""Facts asked of a real shell: their commands succeed, and are understood, in every half-done state of a node.

The node is a folder; what it has of systemd, apt and dpkg are stand-ins that print what the real ones do.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pyinfra.api import StringCommand

from moehost import topology
from roles.base.facts import Directories
from roles.doctor import Doctor
from roles.doctor.facts import Condition
from roles.facts import DpkgAudit, FileStates, Machine, MissingPackages, OsRelease, SourceState, from_json
from roles.firewall.facts import Access, Filter
from roles.fleet.facts import Serving
from roles.host_tuning.facts import Topology
from roles.ik_llama.facts import Build, Images, Mirrors, PackageCandidates, PackagedEngine, PackagedWorker, Releases
from roles.llama_server.facts import (
    ArgumentsProbe,
    EngineContract,
    EngineHelp,
    Inputs,
    InstalledServices,
    ServiceState,
)
from roles.models.facts import Fetch, StoredModel, Strangers
from roles.rpc_worker.facts import Answering, Connected, InstalledWorkers, Waiting, Worker

# Folders of the node that the facts name, which lie below the test's folder.
PREFIXES = [
    "/opt/moehost",
    "/var/lib/moehost",
    "/etc/systemd/system",
    "/etc/containers/systemd",
    "/usr/bin/llama-server",
    "/usr/libexec",
    "/etc/os-release",
    "/etc/apt/sources.list",
]
DIGEST = hashlib.sha256(b"").hexdigest()


class Node:
    """A folder with programs of its own first in the search path."""

    prefixes = PREFIXES

    def __init__(self, folder):
        self.folder, self.programs = folder, folder / "programs"
        self.programs.mkdir()
        self.search = f"{self.programs}:{os.environ['PATH']}"

    def write(self, path, text="", mode=0o644):
        """A file at this path of the node."""
        file = self.folder / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return str(file)

    def program(self, name, script):
        """A stand-in for a program of the node."""
        self.write(f"programs/{name}", f"#!/bin/sh\n{script}\n", mode=0o755)

    def ask(self, fact, **arguments):
        """What pyinfra would make of the fact: its command must succeed; silence is the fact's default."""
        command = StringCommand(fact().command(**arguments)).get_raw_value()
        for prefix in self.prefixes:
            command = command.replace(prefix, f"{self.folder}{prefix}")
        environment = {**os.environ, "PATH": self.search}
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        return fact().process(lines) if lines else fact().default()


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_file_has_digest_permissions_and_owner(node):
    path = node.write("/etc/with a blank and 'quotes'", "text", mode=0o600)
    state = node.ask(FileStates, paths=[path, f"{path}.absent", str(node.folder)])
    owner = subprocess.run(["stat", "-c", "%U:%G", path], capture_output=True, text=True).stdout.strip()
    assert state == {path: [hashlib.sha256(b"text").hexdigest(), "600", owner]}


def test_directories_that_are_there_and_an_account_that_is_not(node):
    node.program("getent", "exit 2")
    (node.folder / "models").mkdir(mode=0o750)
    there, absent = f"{node.folder}/models", f"{node.folder}/etc"
    found = node.ask(Directories, paths=[there, absent])
    assert list(found) == [there]
    assert found[there].endswith(" 750")


def test_an_account_without_directories(node):
    node.program("getent", '[ "$*" = "passwd moehost moehost-build moehost-fetch" ]')
    assert node.ask(Directories, paths=[f"{node.folder}/etc"]) == {"account": "present"}


def test_a_package_counts_as_installed_only_when_dpkg_is_through_with_it(node):
    node.program(
        "dpkg-query",
        """for each in "$@"; do case $each in
        curl) printf ' installed:curl ' ;;
        aria2) printf ' half-configured:aria2 ' ;;
        removed) printf ' config-files:removed ' ;;
        unheard-of) echo "dpkg-query: no packages found matching $each" >&2 ;;
        esac; done; exit 1""",
    )
    packages = ["curl", "aria2", "removed", "unheard-of"]
    assert node.ask(MissingPackages, packages=packages) == ["aria2", "removed", "unheard-of"]


def test_dpkg_with_nothing_half_done(node):
    node.program("dpkg", "true")
    assert node.ask(DpkgAudit) == []


def test_dpkg_with_something_half_done(node):
    node.program("dpkg", '[ "$1" = --audit ] && echo " aria2  High speed download utility"')
    assert node.ask(DpkgAudit) == [" aria2  High speed download utility"]


def test_the_system_says_what_it_is(node):
    node.write("/etc/os-release", 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n')
    assert node.ask(OsRelease)["PRETTY_NAME"] == "Debian GNU/Linux 13 (trixie)"


def source_state(node):
    return node.ask(
        SourceState,
        keyring=f"{node.folder}/a.gpg",
        paths=[f"{node.folder}/a.sources", f"{node.folder}/absent"],
        uri="https://apt.home.arpa/debian",
    )


def test_a_node_that_has_nothing_of_a_source(node):
    node.program("gpg", "exit 2")
    node.write("/etc/apt/sources.list", "deb http://mirror.home.arpa/debian trixie main\n")
    assert source_state(node) == SourceState.default()


def test_a_source_whose_keyring_holds_more_than_its_key(node):
    node.program(
        "gpg",
        """for each; do :; done; echo 'tru::1:' && cat "$each" """,
    )
    keyring = node.write("/a.gpg", "".join(f"pub:-:\nfpr::::{key}:\nuid::::\nsub:-:\nfpr::::SUB:\n" for key in "AB"))
    source = node.write("/a.sources", "URIs: https://apt.home.arpa/debian\n")
    state = source_state(node)
    assert (list(state["files"]), state["keys"], state["naming"]) == ([keyring, source], ["A", "B"], {})


def test_the_files_that_name_a_source_are_read_whole(node):
    node.program("gpg", "exit 2")
    texts = {
        "/etc/apt/sources.list": "# old\n\ndeb https://apt.home.arpa/debian/ trixie main\n",
        "/etc/apt/sources.list.d/a b.list": "deb  [signed-by=/x]  https://apt.home.arpa/debian  trixie  main\n",
        "/etc/apt/sources.list.d/c.sources": "URIs:\n https://apt.home.arpa/debian\nSuites: /\n",
    }
    for path, text in texts.items():
        node.write(path, text)
    node.write("/etc/apt/sources.list.d/d.list.save", texts["/etc/apt/sources.list"])
    node.write("/etc/apt/sources.list.d/e.list", "deb https://other.home.arpa/debian/ trixie main\n")
    assert source_state(node)["naming"] == {f"{node.folder}{path}": text for path, text in texts.items()}


def test_mirrors_are_those_of_the_nodes_own_suite(node):
    node.program(
        "apt-get",
        """[ "$1 $2" = "indextargets --format" ] || exit 100
        echo "Packages trixie main http://mirror.home.arpa/debian/"
        echo "Translations trixie main http://wrong.home.arpa/debian/"
        echo "Packages trixie-updates main http://wrong.home.arpa/debian/"
        echo "Packages trixie contrib http://wrong.home.arpa/debian/" """,
    )
    assert node.ask(Mirrors, codename="trixie") == ["http://mirror.home.arpa/debian/"]


def test_a_node_without_mirrors_of_its_suite_has_none(node):
    node.program("apt-get", "true")
    assert node.ask(Mirrors, codename="noble") == []


def test_packages_that_apt_never_heard_of_have_no_candidate(node):
    node.program("apt-cache", "true")
    assert node.ask(PackageCandidates, packages=["llama.cpp-tools"]) == {}


def test_no_packaged_engine(node):
    assert node.ask(PackagedEngine, package="llama.cpp-tools") == {}


def test_a_packaged_engine_is_followed_to_its_real_file(node):
    node.program("dpkg-query", "printf 1:0.7.0+dfsg-2")
    script = "#!/bin/sh\necho 'version: 0.7.0 (build 11669, commit Debian)' >&2\necho built with GNU\n"
    real = node.write("/usr/libexec/llama-server", script, mode=0o755)
    (node.folder / "usr/bin").mkdir()
    (node.folder / "usr/bin/llama-server").symlink_to(real)
    assert node.ask(PackagedEngine, package="llama.cpp-tools") == {
        "package": "1:0.7.0+dfsg-2",
        "path": real,
        "sha256": hashlib.sha256(script.encode()).hexdigest(),
        "version": "version: 0.7.0 (build 11669, commit Debian)",
    }


def test_a_packaged_engine_that_crashes_says_no_version(node):
    node.program("dpkg-query", "printf 1:0.7.0+dfsg-2")
    node.write("/usr/bin/llama-server", "#!/bin/sh\nkill -SEGV $$\n", mode=0o755)
    assert node.ask(PackagedEngine, package="llama.cpp-tools")["version"] == ""


@pytest.mark.parametrize("folder", ["/opt", "/opt/moehost/engine", "/opt/moehost/engine/releases"])
def test_no_release_on_a_fresh_node(node, folder):
    (node.folder / folder.removeprefix("/")).mkdir(parents=True)
    assert node.ask(Releases) == Releases.default()


def test_a_release_without_its_last_file_is_none(node):
    node.write("/opt/moehost/engine/releases/whole/build.json")
    node.write("/opt/moehost/engine/releases/half/bin/llama-server")
    node.write("/opt/moehost/engine/releases/.new/build.json")
    (node.folder / "opt/moehost/engine/current").symlink_to("releases/whole")
    (node.folder / "opt/moehost/engine/next").symlink_to("releases/half")
    there = {"current": "whole", "next": "", "previous": "", "releases": ["whole"], "leftovers": [".new"]}
    assert node.ask(Releases) == there


@pytest.fixture
def image_node(node):
    """A node that says nothing of itself, and has no systemd and no Podman."""
    for name in ("systemctl", "apt-get", "id", "systemd-detect-virt", "podman"):
        node.program(name, "exit 1")
    return node


def test_a_fresh_node_has_no_image(image_node):
    assert image_node.ask(Images) == {**Images().default(), "builder": ":\n"}


def test_images_of_a_node_that_has_built(image_node):
    for release in ("old-1", "new-1"):
        image_node.write(f"/opt/moehost/engine/releases/{release}/build.json", '{"commit": "abc"}\n')
    image_node.write("/opt/moehost/engine/releases/half-1/bin/llama-server")
    (image_node.folder / "opt/moehost/engine/next").symlink_to("releases/new-1")
    image_node.write("/var/lib/moehost-image/pushed/new-1", "new-1 home.arpa/ik:new-1 id sha256:f00\n")
    image_node.write("/var/lib/moehost-image/pushed/.digest", "sha256:f00")
    image_node.write("/var/lib/moehost-image/old-1/build.log")
    image_node.program(
        "apt-get",
        """echo "Packages main trixie http://mirror.home.arpa/debian/ Debian"
        echo "Translations main trixie http://wrong.home.arpa/debian/ Debian"
        echo "Packages contrib trixie http://wrong.home.arpa/debian/ Debian" """,
    )
    texts = image_node.ask(Images)
    assert (texts["next"], texts["build"]) == ("new-1\n", '{"commit": "abc"}\n')
    assert sorted(texts["releases"].split()) == ["new-1", "old-1"]
    assert texts["pushed"] == "new-1 home.arpa/ik:new-1 id sha256:f00\n"
    assert texts["leftovers"] == "old-1\n"
    assert texts["archives"] == "trixie http://mirror.home.arpa/debian/ Debian\n"


def test_the_folder_of_a_build_that_is_at_work_is_no_leftover(image_node):
    image_node.write("/var/lib/moehost-image/new-1/build.log")
    image_node.program("systemctl", '[ "$*" = "--quiet is-active moehost-image.service" ]')
    assert image_node.ask(Images)["leftovers"] == ""


LOG = """\
== gets packages
[9/9] of something else
== build with 2 jobs
[1/25] Building CXX object a.o
[2/25] Building CXX object b.o
"""


@pytest.mark.parametrize(
    ("log", "phase", "steps"),
    [(LOG, "build with 2 jobs", "2/25"), (f"{LOG}== puts the image together\n", "puts the image together", "")],
)
def test_the_steps_of_a_build_are_those_of_its_phase(node, log, phase, steps):
    node.program("systemctl", "echo active")
    node.write("/var/lib/moehost-build/builds/new-1/build.log", log)
    build = node.ask(Build, folder="/var/lib/moehost-build/builds/new-1", unit="moehost-build.service")
    assert (build["phase"], build["steps"], build["done"]) == (phase, steps, "")


def test_no_engine_has_no_contract(node):
    (node.folder / "opt/moehost/engine").mkdir(parents=True)
    (node.folder / "opt/moehost/engine/current").symlink_to("releases/gone")
    assert node.ask(EngineContract, engine="/opt/moehost/engine/current") == {}


def test_an_engine_in_its_own_words_whatever_it_exits_with(node):
    node.write("/opt/moehost/engine/current/build.json", '{\n  "dialect": "ik"\n}\n')
    script = """#!/bin/sh
        [ "$1" = --version ] && echo "version: 4840 (8337e4cd3)" >&2 && exit
        echo "  -c N  context"
        exit 1
        """
    node.write("/opt/moehost/engine/current/bin/llama-server", script, mode=0o755)
    contract = node.ask(EngineContract, engine="/opt/moehost/engine/current")
    assert json.loads(contract["build"]) == {"dialect": "ik"}
    assert contract["version"] == "version: 4840 (8337e4cd3)"
    assert node.ask(EngineHelp, engine="/opt/moehost/engine/current") == "  -c N  context"


def test_arguments_reach_the_engine_as_they_are(node):
    node.write(
        "/opt/moehost/engine/current/bin/llama-server", "#!/bin/sh\nprintf '%s\\n' \"$@\" >&2; exit 1\n", mode=0o755
    )
    arguments = ["-ot", "blk[.](3|4)[.]ffn_.*=CPU,a=b", "--alias", "a b", "--seed", "-1", "$HOME *"]
    assert (
        node.ask(ArgumentsProbe, engine="/opt/moehost/engine/current", arguments=arguments).splitlines() == arguments
    )


SYSTEMCTL = """case "$*" in
show*) echo MainPID={pid}; echo ActiveState=active ;;
esac"""


def test_a_running_service_is_known_by_what_its_process_was_started_with(node):
    environment = {**os.environ, "MOEHOST_GENERATION": "61062d4d67d99f8d"}
    server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment)
    try:
        node.program("systemctl", SYSTEMCTL.format(pid=server.pid))
        node.program(
            "ss", f"""echo 'LISTEN 0 512 127.0.0.1:8080 0.0.0.0:* users:(("llama-server",pid={server.pid},fd=7))'"""
        )
        state = node.ask(ServiceState, unit="llama-server-tiny.service", port=8080)
    finally:
        server.communicate()
    assert state == {
        "MainPID": str(server.pid),
        "ActiveState": "active",
        "generation": "61062d4d67d99f8d",
        "port_holder": "",
    }


def test_a_port_that_another_program_has(node):
    node.program("systemctl", SYSTEMCTL.format(pid=0))
    node.program(
        "ss",
        """[ "$2" = "sport = :8080" ] || exit 1
        echo 'LISTEN 0 5 127.0.0.1:8080 0.0.0.0:* users:(("python3",pid=812,fd=3),("python3",pid=813,fd=3))'""",
    )
    state = node.ask(ServiceState, unit="llama-server-tiny.service", port=8080)
    assert (state["generation"], state["port_holder"]) == ("", '"python3",pid=812')


def test_what_a_service_reads_at_its_start(node):
    (node.folder / "opt/moehost/engine").mkdir(parents=True)
    (node.folder / "opt/moehost/engine/current").symlink_to("releases/one")
    node.write("/srv/m/manifest.json")
    keys = node.write("/etc/keys", "secret\n")
    arguments = {"model_dir": f"{node.folder}/srv/m", "keys": keys}
    before = node.ask(Inputs, engine="/opt/moehost/engine/current", **arguments)
    engine, model, secret = before.splitlines()
    assert (engine, model) == ("releases/one", f"{DIGEST}  {node.folder}/srv/m/manifest.json")
    assert "secret" not in secret
    assert hashlib.sha256(b"secret\n").hexdigest() not in secret
    node.write("/etc/keys.new", "another secret\n")
    os.replace(f"{keys}.new", keys)  # noqa: PTH105
    assert node.ask(Inputs, engine="/opt/moehost/engine/current", **arguments) != before


def test_a_fresh_node_has_nothing_to_read(node):
    assert (
        node.ask(
            Inputs,
            engine="/opt/moehost/engine/current",
            model_dir=f"{node.folder}/srv/m",
            keys=f"{node.folder}/etc/keys",
        )
        == ""
    )


def test_units_of_others_are_not_ours(node):
    for unit in ("llama-server-tiny.service", "llama-server.service", "llama-server-a.service.d", "ssh.service"):
        node.write(f"/etc/systemd/system/{unit}")
    node.write("/etc/containers/systemd/llama-server-big.container")
    assert [path.removeprefix(str(node.folder)) for path in node.ask(InstalledServices)] == [
        "/etc/containers/systemd/llama-server-big.container",
        "/etc/systemd/system/llama-server-tiny.service",
    ]


def test_a_node_without_units(node):
    assert node.ask(InstalledServices) == []


MANIFEST = {
    "model": "m",
    "source": "file:m.gguf",
    "revision": None,
    "files": [{"name": "m.gguf", "size_bytes": 4, "sha256": DIGEST}],
    "architecture": "qwen35moe",
    "tensors": 76,
}


def test_a_whole_model(node):
    node.write("/srv/m/manifest.json", json.dumps(MANIFEST) + "\n")
    node.write("/srv/m/m.gguf", "GGUF")
    stored = node.ask(StoredModel, folder=f"{node.folder}/srv/m")
    assert stored.to_json() == MANIFEST | {"files": tuple(MANIFEST["files"])}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"m.gguf": "GGUF"},
        {"manifest.json": "", "m.gguf": "GGUF"},
        {"manifest.json": json.dumps(MANIFEST)[:50], "m.gguf": "GGUF"},
        {"manifest.json": json.dumps(MANIFEST)},
        {"manifest.json": json.dumps(MANIFEST), "other.gguf": "GGUF"},
        {"manifest.json": json.dumps(MANIFEST), "m.gguf": "GGU"},
    ],
    ids=["nothing", "no manifest", "empty manifest", "cut-off manifest", "no file", "another file", "cut-off file"],
)
def test_a_model_that_is_not_whole_is_not_there(node, files):
    for name, text in files.items():
        node.write(f"/srv/m/{name}", text)
    assert node.ask(StoredModel, folder=f"{node.folder}/srv/m") is None


def test_what_is_moehosts_in_a_store(node):
    model = node.write("/srv/m/manifest.json", "{}").removesuffix("/manifest.json")
    (node.folder / "srv/m/taken.gguf").hardlink_to(node.write("/alice/m.gguf"))
    way = node.write("/srv/.incoming/n/files/n.gguf.part").removesuffix("/n/files/n.gguf.part")
    own = [model, f"{model}/manifest.json", way, f"{way}/n", f"{way}/n/files", f"{way}/n/files/n.gguf.part"]
    # What lies beside it, and where a link leads.
    node.write("/srv/of-somebody-else/x.gguf")
    node.write("/srv/m/folder/of-somebody-else")
    (node.folder / "srv/link").symlink_to(node.folder / "alice")
    node.write("/alice/manifest.json")
    assert sorted(node.ask(Strangers, store=f"{node.folder}/srv")) == sorted([*own, f"{model}/folder"])


def test_a_store_that_is_not_there_yet(node):
    assert node.ask(Strangers, store=f"{node.folder}/srv") == []


def fetch(node):
    return node.ask(
        Fetch,
        unit="moehost-fetch-m.service",
        job=f"{node.folder}/m.job.json",
        progress=f"{node.folder}/progress.json",
    )


def test_no_fetch_yet(node):
    node.program("systemctl", "echo inactive; exit 3")
    assert fetch(node) == {"active": False, "job": None, "progress": {}}


@pytest.mark.parametrize(
    "text", ["a * of [tm]*", "C:\\new\\x00", "two  blanks", "a\nb", "quote \" and '", "key=value", "ä"]
)
def test_a_fetch_is_read_literally(node, text):
    node.program("systemctl", '[ "$*" = "is-active moehost-fetch-m.service" ] && echo activating; exit 3')
    node.write("/m.job.json", json.dumps({"source": text}, indent=2) + "\n")
    node.write("/progress.json", json.dumps({"error": text}) + "\n")
    assert fetch(node) == {"active": True, "job": {"source": text}, "progress": {"error": text}}


def test_a_job_that_was_cut_off_is_none(node):
    node.program("systemctl", "echo inactive; exit 3")
    node.write("/m.job.json", '{"model": "m", "sour')
    assert fetch(node)["job"] is None


SERVICES = """case "$*" in
list-unit-files*) echo "llama-server-a.service enabled enabled" ;;
list-units*--state*) echo "llama-server-a.service loaded failed failed llama-server: m" ;;
list-units*) echo "moehost-fetch-m.service loaded active running fetch"; echo "llama-server-a.service loaded" ;;
show*) echo "$*" ;;
esac"""


def test_the_condition_of_a_node(node):
    node.program("systemctl", SERVICES)
    node.program(
        "journalctl",
        """case "$*" in
        *--unit*) echo "api_keys: ****abcd"; echo "error: no such file" ;;
        *) echo "1794700000.1 h kernel: NVRM: Xid (PCI:0000:c1:00): 79, pid=1" ;;
        esac""",
    )
    node.program(
        "nvidia-smi",
        """printf '<gpu id="1">\\n\\t<serial>SECRET</serial>\\n\\t<supported_clocks>N/A</supported_clocks>\\n'
        printf '\\t<processes>\\n\\t\\t<pid>1</pid>\\n\\t</processes>\\n\\t<last>1</last>\\n</gpu>\\n'""",
    )
    texts = node.ask(Condition)
    assert texts["cards"].split() == [
        *("<gpu", 'id="1">', "<supported_clocks>N/A</supported_clocks>", "<last>1</last>", "</gpu>"),
    ]
    assert texts["journal"] == "llama-server-a.service error: no such file\n"
    assert "Xid" in texts["xids"]
    *_, first, second = texts["units"].split()
    assert (first, second) == ("llama-server-a.service", "moehost-fetch-m.service")
    assert texts["kernel"] == f"{os.uname().release}\n"
    assert texts["disks"].splitlines()[0].endswith("Mounted on")
    assert texts["releases"] == ""


def test_a_host_in_its_own_words(node):
    node.program("update-grub", "")
    for name in ("dmidecode", "systemctl", "lsblk", "systemd-detect-virt"):
        node.program(name, "exit 127")
    texts = node.ask(Topology)
    assert set(texts) == set(Topology.commands)
    found = topology.parse(texts, "/srv/models")
    assert found.values["/proc/sys/vm/swappiness"].isdecimal()
    assert found.words == tuple(Path("/proc/cmdline").read_text().split())
    assert found.total_mib >= sum(found.memory_mib.values()) > 0
    assert texts["modules"] == texts["before"] == ""


def test_a_node_without_any_of_these_programs(node):
    for name in ("systemctl", "journalctl", "nvidia-smi", "timedatectl", "dmesg", "dmidecode", "lsblk", "df"):
        node.program(name, "exit 127")
    texts = node.ask(Condition)
    assert {texts[key] for key in ("units", "journal", "cards", "xids", "clock", "modules", "disks")} == {""}
    assert texts["uptime"]


def test_the_texts_of_several_facts_are_asked_for_at_once(node):
    node.program("lscpu", "echo of the processor")
    node.program("nvidia-smi", "exit 9")
    node.write("/opt/moehost/engine/releases/one/build.json")
    (node.folder / "opt/moehost/engine/current").symlink_to("releases/one")
    texts = node.ask(Doctor)
    assert set(texts) == set(Doctor.commands)
    assert texts["machine.lscpu"] == "of the processor\n"
    assert texts["condition.releases"].splitlines() == ["current=one", "release=one"]


def test_a_line_that_looks_like_a_key_is_none(node):
    node.program("lscpu", "echo; echo '=== of the processor'")
    assert node.ask(Machine)["lscpu"] == "\n=== of the processor\n"


def test_a_node_without_a_packet_filter(node):
    for name in ("systemctl", "nft", "ss", "getent"):
        node.program(name, "exit 1")
    assert node.ask(Filter) == Filter().default() | {"nft": f"{node.programs}/nft\n"}
    texts = node.ask(Access)
    assert (texts["accounts"], texts["listening"], texts["sockets"]) == ("", "", "")


def test_where_a_deploy_comes_from_is_known_even_below_sudo():
    # Which takes it out of the environment of what it starts, and not out of its own.
    command = StringCommand(Access().command()).get_raw_value()
    words = ["sh", "-c", 'env -u SSH_CONNECTION sh -c "$1"; true', "login", command]
    environment = {**os.environ, "SSH_CONNECTION": "192.0.2.9 50000 192.0.2.7 2022"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    found = Access().process(done.stdout.splitlines())
    assert found["connection"] == "192.0.2.9 50000 192.0.2.7 2022\n"


@pytest.mark.parametrize(("text", "kind"), [("{", dict), ("[]", dict), ("3", dict), ("{}", list), ("null", list)])
def test_what_is_not_as_it_should_be_is_none(text, kind):
    assert from_json(text, kind) is None
    assert from_json('{"a": 1}') == {"a": 1}
    assert from_json("[1]", list) == [1]


UNIT_CAT = """\
[Service]
ExecStart=/opt/moehost/engine/current/bin/llama-server -m m.gguf
ExecStartPost=/usr/local/libexec/moehost/wait-ready http://127.0.0.1:8080 600
ExecStartPost=/usr/local/libexec/moehost/warm-up http://127.0.0.1:8080 900 64
ExecStartPost=CARDS 900 700
"""


def test_services_are_asked_at_their_own_addresses_and_cards_by_their_own_check(node):
    node.write("/unit", UNIT_CAT.replace("CARDS", node.write("/cards-in-use", "", 0o755)))
    node.program(
        "systemctl",
        f"""case "$*" in
        list-unit-files*) echo "llama-server-tiny.service enabled enabled" ;;
        list-units*) echo "llama-server-tiny.service loaded active running x"; echo "llama-server-bare.service x" ;;
        "cat llama-server-tiny.service") cat {node.folder}/unit ;;
        esac""",
    )
    node.program("curl", 'case "$*" in *"http://127.0.0.1:8080/health") printf 503 ;; *) printf 000 ;; esac')
    # One without an address is no service that could answer.
    assert node.ask(Serving) == {"answers": "llama-server-tiny.service 503\n", "cards": ""}
    node.write("/cards-in-use", '#!/bin/sh\necho "CUDA1 holds 3 MiB, least $2" >&2; exit 1\n', 0o755)
    assert node.ask(Serving)["cards"] == "llama-server-tiny.service CUDA1 holds 3 MiB, least 700\n"


def test_a_node_without_systemd_has_no_services(node):
    node.program("systemctl", "exit 1")
    assert node.ask(Serving) == {"answers": "", "cards": ""}


class TestWorkers:
    """Layers of other nodes' models."""

    def test_a_node_without_an_engine_has_nothing_to_hold_them_with(self, node):
        there = node.ask(Worker)
        assert (there["release"], there["build"], there["program"]) == ("", "", "")
        assert "127.0.0.1" in there["addresses"].split()
        assert node.ask(InstalledWorkers) == []

    def test_the_release_that_is_next_counts(self, node):
        node.write("/opt/moehost/engine/releases/a-1/build.json", '{"dialect": "ik"}')
        node.write("/opt/moehost/engine/releases/a-1/bin/rpc-server", mode=0o755)
        (node.folder / "opt/moehost/engine/next").symlink_to("releases/a-1")
        node.write("/etc/systemd/system/moehost-rpc-qwen.service")
        there = node.ask(Worker)
        assert (there["release"], from_json(there["build"])) == ("a-1\n", {"dialect": "ik"})
        assert there["program"].endswith("/next/bin/rpc-server\n")
        assert node.ask(InstalledWorkers) == ["moehost-rpc-qwen.service"]

    @pytest.mark.parametrize("has_backend", [True, False])
    def test_packages_need_program_and_backend(self, node, has_backend):
        path = node.write("/usr/libexec/x86_64-linux-gnu/llama/bin/ggml-rpc-server", mode=0o755)
        node.program("dpkg-query", "printf 0.27.0-1" if has_backend else "exit 1")
        expected = {"rpc_server": path, "backend": "0.27.0-1"} if has_backend else {}
        assert node.ask(PackagedWorker) == expected

    def test_who_answers_and_who_waits(self, node):
        with socket.create_server(("127.0.0.1", 0), backlog=4) as server:
            port = server.getsockname()[1]
            there = f"127.0.0.1:{port}"
            assert node.ask(Waiting, port=port) == 0
            assert node.ask(Answering, endpoints=["127.0.0.1:1", there]) == [there]
            # Nobody has accepted that one.
            assert node.ask(Waiting, port=port) == 1

    def test_a_connection_that_the_other_side_has_closed_is_none(self, node):
        with socket.create_server(("127.0.0.1", 0)) as server:
            there = f"127.0.0.1:{server.getsockname()[1]}"
            with socket.create_connection(server.getsockname()):
                accepted, _ = server.accept()
                assert node.ask(Connected, endpoints=["127.0.0.1:1", there]) == [there]
                accepted.close()
                assert node.ask(Connected, endpoints=[there]) == []
