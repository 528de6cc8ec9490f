"""Runs on a node: ``python3 -m moehost.measure JOB.json`` measures memory, disk and cards, and keeps measured.json.

Standard library only; the modules in `MODULES` and triad.c go with it. Programs run without root's rights, in a
folder that is removed. Standard output is one JSON object: what measured.json holds, or `refusal`, one line.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MODULES = ("__init__", "pcie", "measure")
COMPILERS = ("cc", "gcc", "clang")
USERS = ("moehost-build", "nobody")
MEMORY_SHARE = 4  # the arrays take the fourth part of what is free, at most
CACHES = 4  # an array should be that many times the L3 caches
LEAST_MIB, MOST_MIB = 64, 4096
DISK_THREADS = 4
BLOCK_BYTES = 8 << 20
SYSTEM = Path("/sys/devices/system")


class Refusal(RuntimeError):
    """Why nothing was measured; one line."""


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """What measured.json holds: the hardware as the controller knows it, and what it really does. Raises Refusal."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if not compiler:
        raise Refusal(
            "there is no C compiler; add --install-compiler (apt: gcc, libc6-dev), or deploy an engine first"
        )
    if job["disk_is_asked_for"] and largest(Path(job["disk"])) is None:
        raise Refusal(f"--path: {job['disk']} has no file to read; name a file or a folder with one")
    servers = list(running_servers())
    found = {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "hardware": job["hardware"],
        "promised": job["promised"],
        "servers_running": servers,
    }
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=here.parent) as name:
        folder, user = Path(name), unprivileged()
        for source in (here / "pcie.py", here.parent / "triad.c"):
            (folder / source.name).write_bytes(source.read_bytes())
            (folder / source.name).chmod(0o644)
        folder.chmod(0o755)
        if user:
            shutil.chown(folder, user)
        found["memory"] = memory(compiler, folder, user, float(job["memory_s"]))
        if disk := disk_speed(Path(job["disk"]), float(job["disk_s"])):
            found["disk"] = disk
        found |= pcie(folder, user)
    return found


def running_servers() -> Iterator[str]:
    """The llama-servers that run, and the memory each has."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == "llama-server":
                resident = re.search(r"^VmRSS:\s+(\d+) kB", (path.parent / "status").read_text(), re.MULTILINE)
                yield f"pid {path.parent.name}, {int(resident[1]) // 1024 if resident else 0} MiB"
        except OSError:  # it has just ended
            continue


def unprivileged() -> str | None:
    """The account that programs run under; None where this is no root anyway."""
    there = {each.pw_name for each in pwd.getpwall()}
    return next((name for name in USERS if name in there), None) if os.geteuid() == 0 else None


def run(words: list[str], folder: Path, user: str | None, limit_s: float) -> str:
    """What a program prints; raises Refusal with its last line."""
    more: dict[str, Any] = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s, check=True, **more
        )
    except subprocess.TimeoutExpired:
        raise Refusal(f"{Path(words[0]).name} did not end within {limit_s:.0f} s; is the machine busy?") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"ended with {error.returncode}"]
        says = next((line for line in lines if "error:" in line), lines[-1])
        raise Refusal(f"{Path(words[0]).name}: {says}") from None
    return str(done.stdout)


def numbers(text: str) -> list[int]:
    """The numbers in a kernel's list such as ``0-3,8``."""
    bounds = [part.partition("-") for part in text.strip().split(",") if part]
    return [each for first, _, last in bounds for each in range(int(first), int(last or first) + 1)]


def listed(values: list[int]) -> str:
    """Numbers as triad reads them."""
    return ",".join(map(str, values))


def cores(system: Path, allowed: set[int]) -> list[int]:
    """One processor of each core, of those that may be used."""
    found = []
    for cpu in sorted(allowed):
        siblings = system / f"cpu/cpu{cpu}/topology/thread_siblings_list"
        together = numbers(siblings.read_text()) if siblings.exists() else [cpu]
        if cpu == min(allowed & set(together), default=cpu):
            found.append(cpu)
    return found


def l3_mib(system: Path) -> float:
    """All L3 caches together."""
    caches = {}
    for folder in system.glob("cpu/cpu[0-9]*/cache/index3"):
        size = re.fullmatch(r"(\d+)K", (folder / "size").read_text().strip())
        caches[(folder / "shared_cpu_list").read_text()] = int(size[1]) / 1024 if size else 0
    return sum(caches.values())


def nodes(system: Path, usable: list[int]) -> dict[int, list[int]]:
    """The NUMA nodes that have memory, and which of the processors belong to each."""
    path = system / "node/has_memory"
    found = {}
    for node in numbers(path.read_text()) if path.exists() else []:
        here = set(numbers((system / f"node/node{node}/cpulist").read_text()))
        found[node] = [cpu for cpu in usable if cpu in here]
    return found


def memory(compiler: str, folder: Path, user: str | None, limit_s: float) -> dict[str, Any]:
    """What triad finds on all cores, the pages interleaved as a service has them, and of each NUMA node alone."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free_mib = int(available[1]) // 1024 if available else 0
    wanted_mib = min(max(int(CACHES * l3_mib(SYSTEM)), LEAST_MIB), MOST_MIB)
    array_mib = min(wanted_mib, free_mib // MEMORY_SHARE // 3)
    if array_mib * 3 < 2 * l3_mib(SYSTEM) or array_mib < LEAST_MIB // 2:
        raise Refusal(
            f"only {free_mib} MiB of memory are free, too little to measure it; stop the services meanwhile"
        )
    program = folder / "triad"
    run([compiler, "-O3", "-march=native", "-pthread", "triad.c", "-o", str(program)], folder, user, 60)
    usable = cores(SYSTEM, os.sched_getaffinity(0))
    there = nodes(SYSTEM, usable)
    deadline_s = 10 * limit_s + 60

    def triad(cpus: list[int], mib: int, *policy: str) -> dict[str, Any]:
        words = [str(program), listed(cpus), str(mib), str(limit_s), *policy]
        return dict(json.loads(run(words, folder, user, deadline_s)))

    if len(there) < 2:
        return {**triad(usable, array_mib), "policy": "local"}
    total = {**triad(usable, array_mib, listed(list(there))), "policy": "interleaved"}
    share_mib = max(array_mib // len(there), LEAST_MIB // 2)
    alone = [{"node": node, **triad(cpus, share_mib)} for node, cpus in there.items() if cpus]
    return {**total, "nodes": alone}


def largest(path: Path) -> Path | None:
    """The biggest file of a folder, or the file itself."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return max(files, key=lambda each: each.stat().st_size, default=None)


def disk_speed(where: Path, limit_s: float) -> dict[str, Any] | None:
    """How fast the largest file is read, past the page cache where the file system can; None without a file."""
    path = largest(where)
    if path is None or path.stat().st_size == 0:
        return None
    try:
        return read_speed(path, os.O_DIRECT, limit_s)
    except OSError:
        return read_speed(path, 0, limit_s)


def read_speed(path: Path, flag: int, limit_s: float) -> dict[str, Any]:
    """How fast several threads read a file, each block once; raises OSError."""
    blocks = iter(range(0, path.stat().st_size, BLOCK_BYTES))
    lock, began = threading.Lock(), time.monotonic()

    def read(_: int) -> int:
        done = 0
        with mmap.mmap(-1, BLOCK_BYTES) as buffer:  # aligned, as direct reads must be
            while time.monotonic() - began < limit_s:
                with lock:
                    offset = next(blocks, None)
                if offset is None:
                    break
                done += os.preadv(source, [buffer], offset)
        return done

    source = os.open(path, os.O_RDONLY | flag)
    try:
        with ThreadPoolExecutor(DISK_THREADS) as pool:
            read_bytes = sum(pool.map(read, range(DISK_THREADS)))
    finally:
        os.close(source)
    elapsed_s = time.monotonic() - began
    return {
        "path": str(path),
        "read_gb_s": round(read_bytes / elapsed_s / 1e9, 3),
        "read_mib": read_bytes >> 20,
        "elapsed_s": round(elapsed_s, 2),
        "is_direct": bool(flag),
    }


def pcie(folder: Path, user: str | None) -> dict[str, Any]:
    """What each card takes from the host; nothing without cards, the reason where the driver refuses."""
    try:
        found = json.loads(run([sys.executable, "-B", "pcie.py"], folder, user, 120))
    except Refusal as reason:
        return {"cards_refused": str(reason)}
    return {"cards": found} if found else {}


def keep(found: dict[str, Any], path: Path) -> None:
    """Writes measured.json in one step, for everybody to read."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(found, indent=2) + "\n")
    new.chmod(0o644)
    new.replace(path)


def main(words: list[str]) -> int:
    """Measure by a job's file, and say what was found."""
    job = json.loads(Path(words[0]).read_text())
    try:
        found = measure(job)
        keep(found, Path(job["path"]))
    except (Refusal, OSError) as reason:
        found = {"refusal": str(reason)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
