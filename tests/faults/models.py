"""Models that go bad on the disk."""

import subprocess

from tests.faults.drill import RUN, Drill, faults
from tests.fixtures.node import ROOT

FAULTS, fault = faults()
FOLDER = "/srv/models/sharded"
SHARD = f"{FOLDER}/sharded-00002-of-00003.gguf"
HAVE = "Models | Have sharded in the store"
SUMS = f"cd {FOLDER} && sha256sum *.gguf"


def verify(drill: Drill) -> subprocess.CompletedProcess[str]:
    """`moehost models verify` of the node."""
    command = ["moehost", "models", "verify", f"@podman/{drill.node.name}"]
    command += ["--inventory", str(drill.node.inventory(drill.settings))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@fault(
    "bytes of a shard flip on the disk after it was verified",
    "the timer's unit and `moehost models verify` name the shard, the service goes on, the next deploy fetches that "
    "shard alone",
)
def shard_corrupted(drill: Drill) -> str:
    good, inodes = drill.run(SUMS), drill.run(f"cd {FOLDER} && stat -c '%n %i' *.gguf").splitlines()
    with drill.goes_on():
        drill.run(f"printf 'flipped!' | dd of={SHARD} bs=1 seek=700000 conv=notrunc 2>/dev/null")
        assert drill.run(SUMS) != good
        drill.tries("systemctl start moehost-verify.service")
        assert drill.tries("systemctl is-failed moehost-verify.service") == "failed"
        said = drill.run("journalctl --no-pager --output cat --unit moehost-verify.service --lines 20")
        assert f"{SHARD}: has sha256" in said and "the next deploy fetches what is damaged anew" in said
        asked = verify(drill)
        assert asked.returncode == 1
        assert f"{SHARD}: has sha256" in asked.stdout and "mend it: pyinfra" in asked.stderr
    drill.clock()
    drill.converges(HAVE, RUN)
    assert drill.run(SUMS) == good
    after = drill.run(f"cd {FOLDER} && stat -c '%n %i' *.gguf").splitlines()
    assert [a == b for a, b in zip(inodes, after, strict=True)] == [True, False, True]
    assert verify(drill).returncode == 0
    return "both named it; one shard of three came anew, and the service was restarted on it"


@fault(
    "a manifest is cut off",
    "the service goes on, the next deploy makes the model whole",
)
def manifest_cut_off(drill: Drill) -> str:
    good = drill.run(SUMS)
    with drill.goes_on():
        drill.run(f"truncate -s 100 {FOLDER}/manifest.json")
        asked = verify(drill)
        assert asked.returncode == 1 and "manifest.json: can't be read" in asked.stdout
        drill.clock()
        drill.converges(HAVE)
    assert drill.run(SUMS) == good
    return '"manifest.json: can\'t be read"; the process is still the same'


@fault(
    "a model is deleted under its running service",
    "the service goes on; a restart says what is missing; the next deploy brings it",
)
def model_deleted(drill: Drill) -> str:
    with drill.goes_on():
        drill.run(f"rm -r {FOLDER}")
    drill.tries(f"systemctl restart {drill.node.unit}")
    said = drill.run(f"journalctl --no-pager --output cat --unit {drill.node.unit} --lines 8")
    sentence = "is not there or not readable: deploy again"
    assert sentence in said
    drill.clock()
    drill.converges(HAVE, RUN)
    return f'"the model ... {sentence}"'
