"""Faults of apt and dpkg."""

from tests.faults.drill import Drill, faults

FAULTS, fault = faults()

# Kills dpkg, and apt above it, as soon as dpkg is at a package; prints whether it met them.
KILL = """
import os, signal, subprocess, time
apt = subprocess.Popen(["apt-get", "install", "--yes", "aria2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while apt.poll() is None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline").read().split("\\0")
        except OSError:
            continue
        if words[0].endswith("dpkg") and "--unpack" in words:
            # Once the package's files come.
            while not os.path.exists("/usr/bin/aria2c.dpkg-new") and os.path.exists(f"/proc/{pid}"):
                pass
            os.kill(int(pid), signal.SIGKILL)
            os.kill(apt.pid, signal.SIGKILL)
            break
apt.wait()
"""
HOLD = """
import fcntl, sys, time
with open("/var/lib/dpkg/lock-frontend", "w") as one, open("/var/lib/dpkg/lock", "w") as other:
    fcntl.lockf(one, fcntl.LOCK_EX)
    fcntl.lockf(other, fcntl.LOCK_EX)
    open("/run/held", "w").close()
    time.sleep(float(sys.argv[1]))
"""
REMOVE = "DEBIAN_FRONTEND=noninteractive apt-get remove --yes aria2 >/dev/null"
FINISH, INSTALL = "Base | Finish an interrupted dpkg", "Base | Install packages"


@fault(
    "apt and dpkg are killed (SIGKILL) in the middle of an unpack",
    "the next deploy finishes what dpkg left half done, and installs the rest",
)
def apt_killed(drill: Drill) -> str:
    with drill.goes_on():
        for _ in range(8):
            drill.run(REMOVE)
            drill.program(KILL)
            if half := drill.run("dpkg --audit"):
                break
        assert "aria2" in half
        drill.clock()
        drill.converges(FINISH)
    assert drill.run("dpkg-query -W -f '${db:Status-Status}' aria2") == "installed"
    return "dpkg --audit named aria2, half unpacked; afterwards it is installed"


@fault(
    "dpkg's lock is held by another program for 12 s",
    "the deploy waits for it and ends well",
)
def dpkg_locked(drill: Drill) -> str:
    with drill.goes_on():
        drill.run(f"{REMOVE}; rm -f /run/held; cat >/run/hold.py <<'E'\n{HOLD}\nE")
        drill.run("systemd-run --quiet --collect --unit=holder python3 /run/hold.py 12")
        drill.run("until [ -e /run/held ]; do sleep 0.1; done")
        drill.clock()
        drill.converges(INSTALL)
    assert drill.took_s > 12
    return f"waited, then installed ({drill.took_s - 12:.0f} s after the lock was free)"
