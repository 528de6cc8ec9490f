"""The program that decides whether the cards are ready, with stub nvidia-smi and a stub library of CUDA."""

import shutil
import subprocess
import time

import pytest

from roles.operations import render

CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(not CC, reason="a C compiler is not installed")

LIBRARY = """
#include <stdio.h>
static int number(const char *name) {{
    char path[4096];
    snprintf(path, sizeof path, "{folder}/%s", name);
    FILE *file = fopen(path, "r");
    int value = 0;
    if (file && fscanf(file, "%d", &value) != 1) value = 0;
    if (file) fclose(file);
    return value;
}}
int cuInit(unsigned flags) {{ (void)flags; return number("cuInit"); }}
int cuDeviceGetCount(int *count) {{ *count = number("cuda_cards"); return 0; }}
int cuDriverGetVersion(int *version) {{ *version = 13000; return 0; }}
"""
SMI = """#!/bin/sh
cd {folder}
case "$*" in
*-pl*) shift 3; [ "$1" -le 600 ] || {{ echo "Provided power limit $1.00 W is not a valid power limit which should be \
between 150.00 W and 600.00 W for GPU 00000000:41:00.0"; exit 3; }}; echo "$1" >watts ;;
*-pm*) echo "$2" >persistence ;;
*power.limit*) printf '%s.00\\n' "$(cat watts)" ;;
*) [ ! -e smi_error ] || {{ cat smi_error; exit 18; }}; for n in $(seq $(cat smi_cards)); do
   echo "$(cat library), NVIDIA RTX PRO 6000 Blackwell Workstation Edition"; done ;;
esac
"""


class Machine:
    """A machine with stub cards: `set` changes what they say."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("bin", "sys/module/nvidia"):
            (folder / name).mkdir(parents=True)
        self.set(cuInit=0, cuda_cards=2, smi_cards=2, library="580.95.05", module="580.95.05")
        (folder / "stub.c").write_text(LIBRARY.format(folder=folder))
        command = [CC, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "stub.c"]
        subprocess.run(command, check=True)
        (folder / "bin/nvidia-smi").write_text(SMI.format(folder=folder))
        (folder / "bin/nvidia-smi").chmod(0o755)

    def set(self, **values):
        for name, value in values.items():
            path = self.folder / ("sys/module/nvidia/version" if name == "module" else name)
            path.write_text(f"{value}\n")

    def gate(self, *words):
        """Exit code, what it says in the end, and what it notes."""
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(self.folder),
            "SYS": f"{self.folder}/sys",
            "STATE": f"{self.folder}/state",
        }
        command = ["sh", "-c", render("gpu_gate/gpu-ready.j2"), "gpu-ready", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        note = self.folder / "state"
        return done.returncode, (done.stdout + done.stderr).strip(), note.read_text() if note.exists() else None


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_two_cards_are_ready(machine):
    assert machine.gate(2, 0) == (0, "2 card(s) ready: driver 580.95.05, CUDA 13.0", "2 \n")


def test_one_may_be_enough(machine):
    assert machine.gate(1, 0)[0] == 0


def test_the_cards_are_kept_awake(machine):
    assert machine.gate(2, 0)[0] == 0
    assert (machine.folder / "persistence").read_text() == "1\n"


def test_a_power_limit_for_all(machine):
    code, said, note = machine.gate(2, 0, 300)
    assert (code, note) == (0, "2 300\n")
    assert said.endswith(", power limit 300 W")
    assert (machine.folder / "watts").read_text() == "300\n"


def test_a_power_limit_for_each(machine):
    assert machine.gate(2, 0, 300, 450)[2] == "2 300 450\n"
    assert (machine.folder / "watts").read_text() == "450\n"


BROKEN = {
    "the module is not loaded": (
        {"module": None},
        "the driver's module is not loaded; run: modprobe nvidia",
    ),
    "driver and library of different versions": (
        {"smi_error": "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105"},
        "nvidia-smi fails with module 580.95.05: Failed to initialize NVML: Driver/library version mismatch NVML "
        "library version: 580.105",
    ),
    "a newer library": (
        {"library": "580.105.08"},
        "the driver's library is 580.105.08, its module is 580.95.05; reboot",
    ),
    "expected two, found one": (
        {"smi_cards": 1, "cuda_cards": 1},
        "expected 2 card(s), nvidia-smi finds 1; see: journalctl -k -g 'NVRM: Xid'",
    ),
    "CUDA sees fewer": ({"cuda_cards": 1}, "expected 2 card(s), CUDA finds 1"),
    "nvidia-smi works, CUDA does not": (
        {"cuInit": 999},
        "CUDA answers with error 999: nvidia-uvm is not loaded, or its device nodes are wrong; "
        "run: modprobe nvidia-uvm; nvidia-modprobe -c 0 -u",
    ),
    "an error that has no sentence": ({"cuInit": 3}, "CUDA answers with error 3: see cuda.h"),
}


@pytest.mark.parametrize(("state", "why"), BROKEN.values(), ids=BROKEN)
def test_each_fault_has_its_own_sentence(machine, state, why):
    machine.set(**{name: value for name, value in state.items() if value is not None})
    if state.get("module", "") is None:
        (machine.folder / "sys/module/nvidia/version").unlink()
    assert machine.gate(2, 0) == (1, f"the cards are not ready: {why}", None)


def test_no_library_of_cuda(machine):
    (machine.folder / "libcuda.so.1").unlink()
    code, said, _ = machine.gate(2, 0)
    assert code == 1
    assert said.startswith("the cards are not ready: CUDA is not there: libcuda.so.1")


def test_a_limit_that_the_card_does_not_take(machine):
    code, said, note = machine.gate(2, 0, 900)
    assert (code, note) == (1, None)
    assert said.startswith("card 0 takes no power limit of 900 W: Provided power limit 900.00 W is not a valid")


def test_a_driver_that_takes_a_moment_is_waited_for(machine):
    machine.set(cuda_cards=0)
    began = time.monotonic()
    waker = subprocess.Popen(["sh", "-c", f"sleep 1; echo 2 >{machine.folder}/cuda_cards"])
    assert machine.gate(2, 20)[0] == 0
    waker.wait()
    assert 1 < time.monotonic() - began < 15
