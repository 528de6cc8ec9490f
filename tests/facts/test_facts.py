"""One test for each file of `<module>.<Fact>/`: the command that a fact is, and what it makes of the output."""

from importlib import import_module
from pathlib import Path

import pytest
from pyinfra.api import FactBase
from pyinfra_testing.facts import make_fact_tests

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDERS = sorted(path for path in HERE.iterdir() if "." in path.name and path.is_dir())

# The harness only warns about a case that does not say which command it expects.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

for _folder in FOLDERS:
    globals()[_folder.name] = make_fact_tests("roles", _folder.name, _folder)

FACTS = {}
for _file in sorted((ROOT / "roles").rglob("facts.py")):
    _module = ".".join(_file.relative_to(ROOT / "roles").with_suffix("").parts)
    for _each in vars(import_module(f"roles.{_module}")).values():
        if isinstance(_each, type) and issubclass(_each, FactBase) and _each.__module__ == f"roles.{_module}":
            FACTS[f"{_module}.{_each.__name__}"] = _each

OF_IMAGES = [
    "next",
    "build",
    "releases",
    "images",
    "pushed",
    "leftovers",
    "system",
    "archives",
    "builder",
    "container",
]
OF_CONDITION = [
    *(
        "container",
        "user",
        "kernel",
        "uptime",
        "now",
        "clock",
        "reboot",
        "governors",
        "huge_pages",
        "swaps",
        "modules",
    ),
    *("disks", "mounts", "rotational", "cards", "links", "xids", "units", "journal", "releases", "damaged"),
]
OF_A_DRIVER = [
    *("system", "pci", "kernel", "kernels", "loaded", "taint", "on_disk", "licence", "uvm", "smi", "reboot_required"),
    *("secure_boot", "key", "packages", "holds", "run_file", "stale_initrds", "persistenced", "files"),
]
OF_A_HOST = [
    *("lscpu", "meminfo", "has_memory", "l3_ids", "node_memory", "modules", "container", "virtual_machine", "values"),
    *("words", "boot_words", "own_words", "has_grub", "mounts", "blocks", "cgroup", "memlock", "dma_latency"),
    *("files", "before"),
]
OF_A_SERVICE = [
    *("lscpu", "meminfo", "nvidia_smi", "has_memory", "l3_ids", "measured", "os_release", "kernel", "driver"),
    *("power", "governors", "state", "benching", "plan", "build", "manifest"),
]
OF_A_STACK = [
    *("os_release", "kernel", "words", "packages", "driver", "release", "build", "programs"),
    *("images", "models", "files"),
]
OF_A_WORKER = [
    *("release", "build", "program", "addresses"),
    *("lscpu", "meminfo", "nvidia_smi", "has_memory", "l3_ids", "measured"),
]
# What a fact says of a node that prints nothing, which is what a plan of a fresh node is made from.
OF_NOTHING = {
    "base.facts.Directories": {},
    "bench.facts.Served": dict.fromkeys(OF_A_SERVICE, ""),
    "doctor.facts.Condition": dict.fromkeys(OF_CONDITION, ""),
    "facts.DpkgAudit": [],
    "facts.FileStates": {},
    "facts.Machine": dict.fromkeys(["lscpu", "meminfo", "nvidia_smi", "has_memory", "l3_ids", "measured"], ""),
    "facts.MissingPackages": [],
    "facts.OsRelease": {},
    "firewall.facts.Access": dict.fromkeys(["accounts", "listening", "sockets", "connection"], ""),
    "firewall.facts.Filter": dict.fromkeys(["nft", "files", "unit", "table", "kept", "trying"], ""),
    "gateway.facts.Gateway": {},
    "facts.PathsThere": [],
    "gateway.facts.Unmarked": [],
    "router.facts.RouterState": {},
    "router.facts.Balance": {"state": "", "status": ""},
    "gateway.facts.RootCertificate": "",
    "gateway.facts.UserKeys": dict.fromkeys(["state", "keys", "root"], ""),
    "gpu_gate.facts.Gate": dict.fromkeys(["cards", "state", "ready", "answering"], ""),
    "host_tuning.facts.Topology": dict.fromkeys(OF_A_HOST, ""),
    "ik_llama.facts.Build": {},
    "ik_llama.facts.Catalogue": {"current": "", "next": "", "previous": "", "releases": [], "leftovers": []},
    "ik_llama.facts.Checkout": {},
    "facts.SourceState": {"files": {}, "keys": [], "naming": {}},
    "ik_llama.facts.Images": dict.fromkeys(OF_IMAGES, ""),
    "ik_llama.facts.Mirrors": [],
    "ik_llama.facts.PackageCandidates": {},
    "ik_llama.facts.PackagedEngine": {},
    "ik_llama.facts.PackagedWorker": {},
    "ik_llama.facts.Releases": {"current": "", "next": "", "previous": "", "releases": [], "leftovers": []},
    "ik_llama.facts.Toolchain": dict.fromkeys(
        ["compiler", "missing", "nvcc", "cards", "pci", "cpu_flags", "cores", "available_kib"], ""
    ),
    "llama_server.facts.ArgumentsProbe": "",
    "llama_server.facts.Containers": {"podman": "", "image": ""},
    "llama_server.facts.EngineContract": {},
    "llama_server.facts.EngineHelp": "",
    "llama_server.facts.Generated": {"unit": "", "said": ""},
    "llama_server.facts.Inputs": "",
    "llama_server.facts.InstalledServices": [],
    "llama_server.facts.ModelHeaders": [],
    "llama_server.facts.Rehearsal": {},
    "llama_server.facts.ServerProcess": dict.fromkeys(["smaps", "numa_maps", "status", "namespaces", "nice"], ""),
    "llama_server.facts.ServiceState": {},
    "llama_server.facts.Switch": {},
    "llama_server.facts.UsableKeys": 0,
    "llama_server.facts.VramUsed": [],
    "rpc_worker.facts.Answering": [],
    "rpc_worker.facts.Connected": [],
    "rpc_worker.facts.InstalledWorkers": [],
    "rpc_worker.facts.Waiting": 0,
    "rpc_worker.facts.Worker": dict.fromkeys(OF_A_WORKER, ""),
    "lock.facts.Stack": dict.fromkeys(OF_A_STACK, ""),
    "models.facts.Catalogue": [],
    "metrics.facts.Watch": dict.fromkeys(
        ["units", "generations", "link", "account", "cards", "record", "listening", "host"], ""
    ),
    "fleet.facts.Serving": {"answers": "", "cards": ""},
    "models.facts.Fetch": {},
    "models.facts.GoodFiles": {},
    "models.facts.Inspection": {},
    "models.facts.StoredModel": None,
    "probe.facts.Probe": dict.fromkeys(
        [
            "lscpu",
            "meminfo",
            "nvidia_smi",
            "has_memory",
            "l3_ids",
            "measured",
            "os_release",
            "arch",
            "uid",
            "sudo",
            "python3",
            "cards",
            "disks",
        ],
        "",
    ),
    "models.facts.Strangers": [],
    "nvidia_driver.facts.Driver": dict.fromkeys(OF_A_DRIVER, ""),
    "nvidia_driver.facts.Offer": dict.fromkeys(["names", "versions", "components"], ""),
    "nvidia_driver.facts.Unmet": [],
    "nvidia_container_toolkit.facts.ContainerToolkit": dict.fromkeys(
        ["cards", "podman", "packages", "ctk", "env", "units", "module", "specs"], ""
    ),
    "nvidia_container_toolkit.facts.PackageVersions": {},
    "nvidia_container_toolkit.facts.Runtimes": dict.fromkeys(
        ["cards", "docker", "docker_config", "docker_state", "docker_folders", "containerd", "containerd_config"], ""
    ),
    "notify.facts.Telling": dict.fromkeys(["account", "sendmail", "reload"], ""),
    "tune.facts.Programs": "",
    "tune.facts.Session": {"active": False, "ended": None},
}


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_has_cases(fact):
    assert list((HERE / fact).glob("*.yaml"))


@pytest.mark.parametrize("fact", FACTS)
def test_silence_means_nothing_is_there(fact):
    assert FACTS[fact]().default() == OF_NOTHING[fact]
