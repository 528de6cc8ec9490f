"""A node without hardware: Debian 13 or 12 with systemd in a container on this computer.

The root file system is made by mmdebstrap from this computer's own Debian mirror, imported into Podman, and kept
under a tag that is the hash of its recipe. Everything that needs no GPU really happens in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NAME = "moehost-sandbox"
REPOSITORY = "localhost/moehost-sandbox"
LABEL = "moehost.sandbox"
LOCK = Path(__file__).parents[2] / ".sandbox/image.lock"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Releases of Debian that a sandbox may have; the first one if nobody chooses.
SUITES = ("trixie", "bookworm")
PACKAGES = ("systemd-sysv", "dbus", "ca-certificates", "procps", "iproute2")
# The kernel is this computer's: its modules can't be loaded from in here, and a fresh node is not degraded.
CUSTOMIZE = ('chroot "$1" systemctl mask systemd-modules-load.service',)
# Mount propagation must be shared for LoadCredential= to work together with ProtectSystem=.
INIT = "mount --make-rshared / && exec /sbin/init"

Say = Callable[[str], None]


class SandboxError(RuntimeError):
    """What went wrong on this computer, in one line."""


def mirror() -> str | None:
    """`SANDBOX_MIRROR`, else this computer's own Debian mirror, else None: mmdebstrap then uses its default."""
    if chosen := os.environ.get("SANDBOX_MIRROR"):
        return chosen
    wanted = "$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)"
    listing = run(["apt-get", "indextargets", "--format", wanted], check=False).stdout
    for line in listing.splitlines():
        created_by, component, release, uri = line.split()
        if (created_by, component) == ("Packages", "main") and "debian" in uri and "security" not in release + uri:
            return uri
    return None


def recipe_hash(*recipe: object) -> str:
    """What a product of this recipe is kept under."""
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]


def need(*programs: str) -> None:
    """Raises SandboxError where this computer lacks a program."""
    for program in programs:
        if not shutil.which(program):
            raise SandboxError(f"{program} is not installed; run `make host-packages`")


def debian(suite: str, packages: tuple[str, ...], customize: tuple[str, ...], tar: Path, *options: str) -> None:
    """Make the root file system of a fresh node from this computer's mirror.

    + customize: shell commands for which `$1` is its root
    + options: further ones of mmdebstrap
    """
    found = mirror()
    sources = [f"deb [signed-by={KEYRING}] {found} {suite} main"] if found else []
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--customize-hook={hook}" for hook in customize]
    run([*command, *options, suite, str(tar), *sources])


def image(say: Say, suite: str = SUITES[0], further: tuple[str, ...] = ()) -> str:
    """The image of a fresh node, made when it is not there yet: `SANDBOX_IMAGE`, or one after the recipe above.

    + further: packages that it has beyond those of the recipe
    """
    if chosen := os.environ.get("SANDBOX_IMAGE"):
        return chosen
    packages = (*PACKAGES, *further)
    reference = f"{REPOSITORY}:{recipe_hash(suite, packages, CUSTOMIZE)}"
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    # Two sandboxes that start at the same time wait for one image.
    with LOCK.open("w") as lock, tempfile.TemporaryDirectory(prefix="moehost-") as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _podman("image", "exists", reference, check=False).returncode == 0:
            return reference
        need("mmdebstrap", "podman")
        say(f"making the image {reference} (Debian {suite}, about a minute, once)")
        tar, started = Path(folder, "root.tar"), time.monotonic()
        debian(suite, packages, CUSTOMIZE, tar)
        _podman("import", "--quiet", str(tar), reference)
        say(f"made the image in {time.monotonic() - started:.0f} s")
    return reference


def runtime_arguments() -> list[str]:
    """What `podman run` needs so that systemd starts here; nothing special on an ordinary machine.

    crun refuses version 1 and hybrid control groups, and without CAP_SYS_RESOURCE limits can't be raised
    to Podman's defaults.
    """
    arguments = []
    if _podman("info", "--format", "{{.Host.CgroupsVersion}}").stdout.strip() == "v1":
        arguments += ["--runtime", "runc"]
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    if not effective & (1 << 24) or arguments:
        arguments += ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4096:4096"]
    return arguments


def up(name: str, say: Say, suite: str = SUITES[0], further: tuple[str, ...] = ()) -> None:
    """Start the sandbox `name`, or leave it running; returns when systemd has started in it.

    + further: packages that a fresh one has beyond those of the recipe
    """
    if state(name) == "running":
        say(f"{name} is running")
        return
    if state(name) is None:
        reference = image(say, suite, further)
        say(f"starting {name}")
        # Privileged: the hardened units inside set up mounts, namespaces and filters of their own.
        options = ["--privileged", "--systemd=always", "--label", LABEL, "--hostname", name, "--name", name]
        _podman("run", "--detach", *runtime_arguments(), *options, reference, "sh", "-c", INIT)
    else:
        say(f"starting {name} again")
        _podman("start", name)
    for _ in range(120):
        boot = _podman("exec", name, "systemctl", "is-system-running", check=False).stdout.strip()
        if boot == "running":
            return
        if boot == "degraded":
            failed = _podman("exec", name, "systemctl", "--failed", "--plain", "--no-legend").stdout.split()
            say(f"{name} runs, but {failed[0] if failed else 'a unit'} failed in it")
            return
        time.sleep(0.5)
    raise SandboxError(f"systemd did not start in {name}; see `podman logs {name}`")


def down(name: str) -> bool:
    """Remove the sandbox `name` with everything in it; says whether there was one."""
    existed = state(name) is not None
    _podman("rm", "--force", "--ignore", "--time", "0", name)
    return existed


def clean(say: Say) -> None:
    """Remove all sandboxes and their images."""
    for name in _podman("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").stdout.split():
        say(f"removing the container {name}")
        down(name)
    for reference in _podman("images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).stdout.split():
        say(f"removing the image {reference}")
        _podman("rmi", "--force", reference)


def state(name: str) -> str | None:
    """`running`, `exited` ... as Podman says, or None without such a container."""
    found = _podman("container", "inspect", "--format", "{{.State.Status}}", name, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def execute(name: str, *command: str, stdin: str | None = None) -> str:
    """Run a command in the sandbox and return what it prints."""
    interactive = ["--interactive"] if stdin is not None else []
    return _podman("exec", *interactive, name, *command, stdin=stdin).stdout


def shell(name: str) -> None:
    """Replace this process by a shell in the sandbox."""
    os.execvp("podman", ["podman", "exec", "--interactive", "--tty", name, "bash", "--login"])  # noqa: S606


def _podman(*arguments: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return run(["podman", *arguments], check=check, stdin=stdin)


def run(command: list[str], check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of this computer; raises SandboxError when it is not there or, if `check`, fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, input=stdin)
    except FileNotFoundError:
        raise SandboxError(f"{command[0]} is not installed; run `make host-packages`") from None
    if check and done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise SandboxError(f"`{' '.join(command[:3])} ...` failed: {reason}")
    return done
