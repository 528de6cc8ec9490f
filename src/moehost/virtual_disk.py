"""What a virtual node starts from: Debian 13 with a kernel and a boot loader of its own on a disk, and its keys.

All of it is made once, and kept in a folder whose name is the hash of the recipe.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from moehost.sandbox import SUITES, SandboxError, Say, debian, need, recipe_hash, run

SUITE = SUITES[0]
# A user's path may lack its folder.
MKE2FS = "/usr/sbin/mke2fs"
CACHE = Path(".sandbox/vm-images")
# A server as Debian's installer leaves it, in what matters here; moehost's own packages come with the deploy.
PACKAGES = (
    "linux-image-cloud-amd64", "systemd-sysv", "dbus", "udev", "grub-pc", "openssh-server", "ca-certificates",
    "procps", "iproute2", "python3",
)  # fmt: skip
# Emulated code is kept by its address, and guards against other tenants double the cost of a new process.
KERNEL_WORDS = "console=ttyS0 norandmaps mitigations=off"
FILES = {
    # The second disk outlives the first one.
    "/etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\nLABEL=models /srv/models ext4 nofail 0 2\n",
    "/etc/systemd/network/80-dhcp.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    # QEMU's own, which asks this computer's.
    "/etc/resolv.conf": "nameserver 10.0.2.3\n",
    "/etc/hostname": "moehost-vm\n",
    "/etc/hosts": "127.0.0.1 localhost\n127.0.1.1 moehost-vm\n",
    "/etc/default/grub.d/00-console.cfg": (
        f'GRUB_CMDLINE_LINUX="{KERNEL_WORDS}"\nGRUB_CMDLINE_LINUX_DEFAULT=""\nGRUB_TERMINAL=console\nGRUB_TIMEOUT=0\n'
    ),
    # For the first boot; `update-grub` of the node writes another one.
    "/boot/grub/grub.cfg": f"linux /vmlinuz root=LABEL=root ro {KERNEL_WORDS}\ninitrd /initrd.img\nboot\n",
}
COMMANDS = (
    "systemctl enable systemd-networkd.service ssh.service",
    # There is no disk that a boot loader could be installed on: the boot medium only looks for grub.cfg.
    "echo grub-pc grub-pc/install_devices_empty boolean true | debconf-set-selections",
    # As after the first boot of an installed machine, which caches what depends on /usr; last, to be newer than it.
    "journalctl --update-catalog && touch /etc/.updated /var/.updated",
)
# A machine has package lists: an emulated CPU takes a minute for them, and as long again for descriptions.
OPTIONS = ("--skip=cleanup/apt/lists", '--aptopt=Acquire::Languages "none"')
ROOT_SIZE, MODELS_SIZE = "16G", "4G"
BOOT = "search --no-floppy --label root --set=root\nconfigfile /boot/grub/grub.cfg\n"


def customize(files: Mapping[str, str], key: str) -> tuple[str, ...]:
    """Shell commands that finish a root file system `$1`.

    + files: path -> text
    + key: path of the key pair that root lets in; its name with `host_` before it is the key pair of the node
    """
    hooks = ['mkdir -p "$1/srv/models"']
    for path, text in files.items():
        hooks += [
            f'mkdir -p "$1{Path(path).parent}" && rm -f "$1{path}" && printf %s {shlex.quote(text)} >"$1{path}"'
        ]
    hooks += [f'chroot "$1" sh -c {shlex.quote(command)}' for command in COMMANDS]
    folder, name = os.path.split(key)
    host, ssh = shlex.quote(f"{folder}/host_{name}"), '"$1/etc/ssh'
    return (
        *hooks,
        f'install -D -m 600 {shlex.quote(key)}.pub "$1/root/.ssh/authorized_keys"',
        f'rm {ssh}/"ssh_host_* && install -m 600 {host} {ssh}/ssh_host_ed25519_key"',
        f'install -m 644 {host}.pub {ssh}/ssh_host_ed25519_key.pub"',
    )


def folder(include: tuple[str, ...]) -> Path:
    """Where what is below is kept."""
    packages = (*PACKAGES, *include)
    return CACHE / recipe_hash(SUITE, packages, FILES, customize({}, "/id_ed25519"), OPTIONS, BOOT, ROOT_SIZE)


def made(say: Say, include: tuple[str, ...] = ()) -> Path:
    """The folder with `root.img`, `boot.iso`, `id_ed25519` and `host_id_ed25519`, made when it is not there yet.

    + include: packages beside those of every machine
    """
    if (target := folder(include)).is_dir():
        return target
    need("mmdebstrap", MKE2FS, "qemu-img", "grub-mkrescue", "xorriso", "mformat", "ssh-keygen")
    if not Path("/usr/lib/grub/i386-pc").is_dir():
        raise SandboxError("grub-pc-bin is not installed; run `make host-packages`")
    say(f"making the disk of a virtual node (Debian {SUITE}, about two minutes, once)")
    started = time.monotonic()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incoming-", dir=CACHE, ignore_cleanup_errors=True) as incoming:
        where = Path(incoming).resolve()
        for name in ("id_ed25519", "host_id_ed25519"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "moehost-vm", "-f", str(where / name)])
        debian(
            SUITE, (*PACKAGES, *include), customize(FILES, str(where / "id_ed25519")), where / "root.tar", *OPTIONS
        )
        _disk(where)
        _boot_medium(where)
        (where / "root.tar").unlink()
        where.chmod(0o755)
        # Kept under its name only when all of it is there.
        where.rename(target.resolve())
    say(f"made the disk in {time.monotonic() - started:.0f} s")
    return target


def _disk(where: Path) -> None:
    """Files of other owners can be unpacked by root, or by whom a user namespace makes root."""
    namespace = [] if os.geteuid() == 0 else ["podman", "unshare"]
    script = (
        'cd "$1" && mkdir root && tar --numeric-owner --xattrs --xattrs-include="*" -C root -xf root.tar && '
        f'{MKE2FS} -q -t ext4 -L root -d root root.img "$2" && rm -rf root'
    )
    run([*namespace, "sh", "-c", script, "sh", str(where), ROOT_SIZE])


def _boot_medium(where: Path) -> None:
    tree = where / "boot/boot/grub"
    tree.mkdir(parents=True)
    (tree / "grub.cfg").write_text(BOOT)
    modules = "biosdisk part_msdos ext2 search search_label configfile linux normal"
    options = ["--fonts=", "--themes=", "--locales=", f"--install-modules={modules}"]
    run(["grub-mkrescue", *options, "-o", str(where / "boot.iso"), str(where / "boot")])
    run(["rm", "-r", str(where / "boot")])
