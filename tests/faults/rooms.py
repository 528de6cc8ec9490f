"""Disks without room."""

from collections.abc import Iterator
from contextlib import contextmanager

from moehost import synthetic
from tests.faults.drill import RUN, Drill, faults
from tests.fixtures.hub import REVISION, on_node
from tests.fixtures.node import ROOT, changes

FAULTS, fault = faults()
STORE = "/srv/full"


@contextmanager
def full(drill: Drill, folder: str) -> Iterator[None]:
    """A folder is on a disk of its own, with the same in it and no byte of room."""
    drill.run(
        f"cp -a {folder} /run/before && mount -t tmpfs -o size=2M,mode=0755 tmpfs {folder} && "
        f"cp -a /run/before/. {folder}/ && rm -r /run/before; "
        f"dd if=/dev/zero of={folder}/filler bs=4k 2>/dev/null; true"
    )
    try:
        yield
    finally:
        drill.run(f"umount --lazy {folder}")


@contextmanager
def hub(drill: Drill) -> Iterator[str]:
    """Address of a hub on the node that sends a model of three shards slowly."""
    there = ROOT / ".sandbox/faults-hub"
    there.mkdir(exist_ok=True)
    synthetic.write(there / "big.gguf", synthetic.Shape(shards=3, seed=7))
    with on_node(drill.node, there, "token") as url:
        yield url


@fault(
    "the disk becomes full in the middle of a download",
    "the deploy says so, the old model serves on, what is there stays, the next deploy completes it",
)
def full_in_a_download(drill: Drill) -> str:
    token = ROOT / ".sandbox/faults-hub-token"
    token.write_text("token\n")
    with drill.mounted(STORE, "20M"), drill.other_settings(), hub(drill) as url:
        drill.change(model={"name": "big", "source": f"hf://OWNER/REPO/tiny@{REVISION}"})
        drill.settings |= {
            "models_dir": STORE,
            "free_space_reserve_mib": 0,
            "hf_endpoint": url,
            "hf_token_file": str(token),
        }
        with drill.goes_on():
            with drill.deploying() as deploy:
                held = f"du -sk {STORE}/.incoming 2>/dev/null | cut -f1"
                deploy.meets(lambda: int(drill.tries(held) or 0) > 4000)
                drill.tries(f"dd if=/dev/zero of={STORE}/filler bs=64k")
                ended = deploy.end()
            assert ended.returncode == 1 and "Traceback" not in ended.stderr
            (said,) = [line for line in ended.stderr.splitlines() if "model big:" in line]
            assert "the disk is full; mend it and run again to continue" in said, said
            assert drill.run(f"ls {STORE}").split() == ["filler"]
        drill.run(f"rm {STORE}/filler")
        held_kib = int(drill.run(held))
        assert held_kib > 4000
        drill.clock()
        drill.converges("Models | Have big in the store", RUN)
        assert drill.run(f"cd {STORE}/big && ls *.gguf | wc -l") == "3"
    drill.run("rm /etc/moehost/hub-token")
    changes(drill.deploy())
    return (
        f'"the disk is full; mend it and run again to continue"; {held_kib // 1024} MiB stayed, and it was completed'
    )


@fault(
    "the disk is full when a unit is to be written",
    "the unit of before stays, whole, and its process goes on; the next deploy writes it",
)
def full_for_a_unit(drill: Drill) -> str:
    text = drill.run(f"cat /etc/systemd/system/{drill.node.unit}")
    drill.something_to_do()
    with drill.goes_on(), full(drill, "/etc/systemd/system"):
        drill.fails("No space left on device")
        assert drill.run(f"cat /etc/systemd/system/{drill.node.unit}") == text
    drill.clock()
    drill.converges(RUN)
    return '"No space left on device", unit and process as before'


@fault(
    "the disk is full when a plan is to be written",
    "the process of before goes on; the next deploy writes the plan and restarts the service",
)
def full_for_a_plan(drill: Drill) -> str:
    text = drill.run("cat /etc/moehost/tiny/plan.json")
    drill.something_to_do()
    with drill.goes_on(), full(drill, "/etc/moehost/tiny"):
        drill.fails("No space left on device")
        assert drill.run("cat /etc/moehost/tiny/plan.json") == text
    drill.clock()
    drill.converges(RUN)
    return '"No space left on device", plan and process as before'
