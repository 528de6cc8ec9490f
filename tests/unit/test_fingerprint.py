"""By what a benchmark's machine is known."""

import json

from moehost import fingerprint
from roles.bench.facts import Served

TEXTS = {
    **Served().default(),
    "os_release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "kernel": "6.12.0-amd64\n",
    "driver": "580.95.05\n580.95.05\n",
    "power": "300.00\n600.00\n",
    "governors": "performance\n",
    "state": "active\n",
    "benching": "inactive\n",
    "plan": json.dumps({"engine": "ik 4840", "argv": ["-m", "/srv/models/m/m.gguf"], "env": {}}),
    "build": json.dumps({"commit": "8337e4cd"}),
    "manifest": json.dumps({"model": "m", "files": [{"name": "m.gguf", "sha256": "ab", "size_bytes": 1}]}),
}


def test_what_decides_over_the_speed_is_kept():
    assert fingerprint.of_node(TEXTS) == {
        "os": "Debian GNU/Linux 13 (trixie)",
        "kernel": "6.12.0-amd64",
        "driver": "580.95.05",
        "power_limit_w": "300.00 600.00",
        "governor": "performance",
        "engine": "ik 4840",
        "engine_commit": "8337e4cd",
        "model": {"name": "m", "sha256": {"m.gguf": "ab"}},
        "argv": ["-m", "/srv/models/m/m.gguf"],
    }


def test_the_machine_is_read_as_the_planner_reads_it():
    lscpu = "Model name: AMD EPYC 9175F 16-Core Processor\nSocket(s): 1\nCore(s) per socket: 16\nCPU(s): 32\n"
    lscpu += "NUMA node(s): 1\n"
    found = fingerprint.of_node({**TEXTS, "lscpu": lscpu, "meminfo": "MemTotal:       791552000 kB\n"})
    assert (found["cpu"], found["cores"], found["memory_mib"]) == ("AMD EPYC 9175F 16-Core Processor", 16, 773000)
    assert "gpus" not in found


def test_a_package_is_known_by_its_version():
    build = json.dumps({"source": "package", "package": "1:0.7.0+dfsg-2"})
    assert fingerprint.of_node({**TEXTS, "build": build})["engine_commit"] == "1:0.7.0+dfsg-2"


def test_files_that_are_cut_off_say_nothing():
    cut = {key: text[:9] for key, text in TEXTS.items() if key in ("plan", "build", "manifest")}
    found = fingerprint.of_node({**TEXTS, **cut})
    assert {"argv", "engine"}.isdisjoint(found)
    assert fingerprint.plan_of(TEXTS | cut) is None
    assert fingerprint.plan_of(TEXTS)["engine"] == "ik 4840"


def test_what_has_changed_between_two_is_a_line_each():
    model = {"name": "m", "sha256": {"m.gguf": "ab"}}
    before = {"driver": "580.95.05", "argv": ["-t", "13", "-ub", "512"], "model": model, "gpus": ["a"]}
    after = {
        "argv": ["-t", "16", "-ub", "512"],
        "model": {"name": "m", "sha256": {"m.gguf": "cd"}},
        "gpus": ["a", "a"],
    }
    assert list(fingerprint.changes(before, after)) == [
        "driver: 580.95.05 -> unknown",
        "-t: 13 -> 16",
        "model sha256 m.gguf: ab -> cd",
        "gpus: a -> a, a",
    ]
    assert list(fingerprint.changes(before, before)) == []
