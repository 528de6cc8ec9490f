"""A node with a kernel of its own: a virtual machine on this computer that is reached over SSH.

QEMU runs it as this user, with KVM where that works and by emulation where it does not. Its root disk is an overlay
over the one of `virtual_disk` and can be thrown away; the models lie on a second disk, as on a machine of one's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from moehost import virtual_disk
from moehost.sandbox import SandboxError, Say, need, run
from moehost.virtual_disk import MKE2FS

NAME = "moehost-vm"
MACHINES = Path(".sandbox/vm")
QEMU = "qemu-system-x86_64"
CPU = "AMD EPYC 9175F 16-Core Processor"
# Emulated, what these do takes several times as long as the same with SSE.
SLOW_EMULATED = ("avx", "avx2", "fma", "f16c")
MEMORY_MIB = 4096
BOOT_S = 300
# Emulated CPUs on a computer that is busy were seen to hang in a boot, once in some twenty.
EMULATED_BOOTS = 2
KVM_BOOT_S = 90
# A boot sector that ends QEMU with status 33 (mov al,16; out 0xf4,al; hlt; jmp).
BOOT_SECTOR = bytes.fromhex("b010e6f4f4ebfd").ljust(510, b"\0") + b"\x55\xaa"


@dataclass(frozen=True)
class Machine:
    """A virtual machine and the folder with its files.

    + name: name of the folder
    """

    name: str = NAME

    @property
    def folder(self) -> Path:
        """Where its disks, the pid of its QEMU, its SSH port and its console's log are."""
        return MACHINES / self.name

    @property
    def exists(self) -> bool:
        """Whether it has been made, running or not."""
        return self.models.exists()

    @property
    def root(self) -> Path:
        """The root disk, an overlay."""
        return self.folder / "root.qcow2"

    @property
    def models(self) -> Path:
        """The disk below /srv/models."""
        return self.folder / "models.img"

    @property
    def console(self) -> Path:
        """What its serial console says."""
        return self.folder / "console.log"

    @property
    def known_hosts(self) -> Path:
        """Its host key, as OpenSSH and pyinfra want it told."""
        return self.folder / "known_hosts"

    @property
    def key(self) -> Path:
        """The private key that root lets in."""
        return self.folder / "id_ed25519"

    @property
    def port(self) -> int:
        """The port of this computer's loopback that leads to its SSH server."""
        return int((self.folder / "port").read_text())

    @property
    def pid(self) -> int | None:
        """The pid of its QEMU, or None where it does not run; a pid that has become another program's is not its."""
        try:
            pid = int((self.folder / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if str(self.folder.resolve() / "pid").encode() in words else None

    @property
    def inventory_data(self) -> dict[str, object]:
        """What pyinfra needs to reach it."""
        return {
            "ssh_hostname": "127.0.0.1",
            "ssh_port": self.port,
            "ssh_user": "root",
            "ssh_key": str(self.key.resolve()),
            "ssh_known_hosts_file": str(self.known_hosts.resolve()),
            "ssh_strict_host_key_checking": "yes",
        }

    @property
    def ssh(self) -> list[str]:
        """The command that runs another one on it, which is to follow."""
        options = ("StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.known_hosts.resolve()}", "BatchMode=yes",
                   "ConnectTimeout=10", "LogLevel=ERROR", "IdentitiesOnly=yes")  # fmt: skip
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", *words, "-i", str(self.key.resolve()), "-p", str(self.port), "root@127.0.0.1"]


def command(machine: Machine, boot: Path, port: int, accelerator: str) -> list[str]:
    """QEMU's command line.

    Two sockets with a NUMA node each. Under emulation a vendor beside the name, or one socket with two nodes, makes
    the kernel panic.

    + boot: medium that hands over to the root disk's own grub.cfg
    + port: port of this computer for the node's SSH
    + accelerator: `kvm` or `tcg`
    """
    folder = machine.folder.resolve()
    words = [QEMU, "-name", machine.name, "-display", "none", "-daemonize", "-pidfile", f"{folder}/pid"]
    words += ["-accel", "tcg,thread=multi" if accelerator == "tcg" else accelerator]
    features = [f"{each}=off" for each in SLOW_EMULATED] if accelerator == "tcg" else []
    words += ["-cpu", ",".join(["max", f"model-id={CPU}", *features])]
    words += ["-smp", "4,sockets=2,cores=2,threads=1", "-m", str(MEMORY_MIB)]
    for node in range(2):
        words += ["-object", f"memory-backend-ram,id=memory{node},size={MEMORY_MIB // 2}M"]
        words += ["-numa", f"node,nodeid={node},cpus={2 * node}-{2 * node + 1},memdev=memory{node}"]
    words += ["-cdrom", str(boot.resolve()), "-boot", "d", "-serial", f"file:{folder}/{machine.console.name}"]
    for path, kind in ((machine.root, "qcow2"), (machine.models, "raw")):
        # What a crash of this computer costs here is a node for trying.
        words += ["-drive", f"file={path.resolve()},format={kind},if=virtio,cache=unsafe,discard=unmap"]
    words += ["-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22"]
    return [*words, "-device", "virtio-rng-pci"]


def accelerator() -> str:
    """`kvm` where a boot sector comes through with it, else `tcg`: a /dev/kvm may be there and not work."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.NamedTemporaryFile(prefix="moehost-") as sector:
        sector.write(BOOT_SECTOR)
        sector.flush()
        probe = [QEMU, "-accel", "kvm", "-cpu", "max", "-display", "none", "-nodefaults", "-no-reboot"]
        probe += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        probe += ["-drive", f"file={sector.name},format=raw,if=ide,snapshot=on"]
        try:
            ended = subprocess.run(probe, capture_output=True, timeout=10).returncode
        except subprocess.TimeoutExpired:
            return "tcg"
    return "kvm" if ended == 33 else "tcg"


def up(machine: Machine, say: Say, include: tuple[str, ...] = ()) -> None:
    """Start a machine, or leave it running; returns when systemd has started in it.

    + include: packages that a new root disk has beside those of every machine
    """
    if machine.pid:
        say(f"{machine.name} is running")
        return
    need(QEMU, "qemu-img", MKE2FS, "ssh")
    machine.folder.mkdir(parents=True, exist_ok=True)
    image = machine.folder / "image"
    if not machine.root.exists():
        if include:
            (machine.folder / "include").write_text("\n".join(include))
        _new_root(machine, say)
    if not machine.exists:
        new = machine.models.with_suffix(".new")
        run([MKE2FS, "-q", "-F", "-t", "ext4", "-L", "models", str(new), virtual_disk.MODELS_SIZE])
        new.rename(machine.models)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (machine.folder / "port").write_text(f"{port}\n")
    host_key = (image / "host_id_ed25519.pub").read_text()
    machine.known_hosts.write_text(f"[127.0.0.1]:{port} {host_key}")
    # A boot sector may come through where a kernel hangs: what has hung with KVM is emulated from then on.
    emulated, started = machine.folder / "emulated", time.monotonic()
    chosen = "tcg" if emulated.exists() else accelerator()
    say(f"starting {machine.name} ({'with KVM' if chosen == 'kvm' else 'emulated, KVM does not work here'})")
    boots = {"kvm": ["kvm", "tcg"], "tcg": ["tcg"] * EMULATED_BOOTS}[chosen]
    for number, each in enumerate(boots, 1):
        run(command(machine, image / "boot.iso", port, each))
        try:
            wait(machine, BOOT_S if each == "tcg" else KVM_BOOT_S)
            break
        except SandboxError as error:
            if number == len(boots):
                raise
            say(f"{error}; it is switched off and on again{', emulated' if each == 'kvm' else ''}")
            stop(machine)
            if each == "kvm":
                emulated.touch()
    say(f"{machine.name} has started in {time.monotonic() - started:.0f} s")


def _new_root(machine: Machine, say: Say) -> None:
    include = machine.folder / "include"
    made = virtual_disk.made(say, tuple(include.read_text().split()) if include.exists() else ())
    image = machine.folder / "image"
    image.unlink(missing_ok=True)
    image.symlink_to(made.resolve())
    machine.key.unlink(missing_ok=True)
    machine.key.symlink_to("image/id_ed25519")
    new = machine.root.with_suffix(".new")
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str((made / "root.img").resolve()), "-F", "raw", str(new)])
    new.rename(machine.root)


def wait(machine: Machine, seconds: int = BOOT_S) -> None:
    """Wait until systemd has started everything; raises SandboxError if it does not come to that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not machine.pid:
            raise SandboxError(f"{machine.name}: QEMU has ended; see {machine.console}")
        if run([*machine.ssh, "systemctl is-system-running --wait"], check=False).stdout.strip() in (
            "running",
            "degraded",
        ):
            return
        time.sleep(1)
    raise SandboxError(f"{machine.name} did not start in {seconds} s; see {machine.console}")


def stop(machine: Machine) -> None:
    """End the QEMU of a machine, and no other."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if (pid := machine.pid) is None:
            return
        os.kill(pid, sent)
        for _ in range(100):
            if _has_ended(pid):
                return
            time.sleep(0.1)


def _has_ended(pid: int) -> bool:
    """Whether a process has closed its files; its command line is gone a moment before that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def down(machine: Machine) -> bool:
    """Remove a machine with its disks; says whether there was one."""
    existed = machine.folder.exists()
    stop(machine)
    shutil.rmtree(machine.folder, ignore_errors=True)
    return existed


def wipe(machine: Machine, say: Say) -> None:
    """Give a machine a new root disk, as if it had been installed again, and start it; the models stay."""
    if not machine.exists:
        raise SandboxError(f"there is no {machine.name}; make it with `moehost vm up`")
    stop(machine)
    say(f"{machine.name} gets a new root disk")
    machine.root.unlink(missing_ok=True)
    up(machine, say)


def machines() -> list[Machine]:
    """All machines that there are."""
    return [Machine(path.name) for path in sorted(MACHINES.glob("*")) if path.is_dir()]


def clean(say: Say) -> None:
    """Remove all machines, and what they start from."""
    for machine in machines():
        say(f"removing {machine.name}")
        down(machine)
    for folder in virtual_disk.CACHE.glob("*"):
        say(f"removing {folder}")
        shutil.rmtree(folder)
