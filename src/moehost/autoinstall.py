"""Unattended installation of Ubuntu 24.04 and Debian 13: the texts that their installers read."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import AfterValidator, ValidationError, model_validator

from moehost import mistakes
from moehost.setting import Settings, matching
from moehost.settings import Folder, SettingsError

TEMPLATES = Path(__file__).parents[2] / "templates"
# With hundreds of GB of memory swap only delays the end of a model that does not fit; docs/new-machine.md.
ROOT_GIB = 100
LABEL = "models"


def _is_public_key(text: str) -> str:
    words = text.strip().split()
    try:
        named = len(words) >= 2 and "\n" not in text.strip() and words[0].encode() in base64.b64decode(words[1])[:64]
    except binascii.Error:
        named = False
    if not named or "'" in text:
        raise ValueError("is no public key of OpenSSH in one line; give the .pub file")
    return text.strip()


Word = Annotated[
    str, matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "use lower-case letters, digits and dashes, at most 63")
]
User = Annotated[str, matching(r"(?!root$)[a-z_][a-z0-9_-]{0,31}", "write a user's name other than root")]
Disk = Annotated[
    str, matching(r"/dev/[A-Za-z0-9/_.:-]+", "write the path of a disk, best /dev/disk/by-id/..., which never moves")
]


class Installation(Settings):
    """What an owner decides about a machine before there is a system on it.

    + disk: gets the system, and the models where `models_disk` is None
    + keep_models: the models disk is not shown to the partitioner, and mounted by its label
    """

    os: Literal["ubuntu", "debian"]
    hostname: Word
    disk: Disk
    ssh_key: Annotated[str, AfterValidator(_is_public_key)]
    user: User = "admin"
    models_disk: Disk | None = None
    models_dir: Folder = "/srv/models"
    keep_models: bool = False
    timezone: Annotated[str, matching(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", "write e.g. Europe/Berlin")] = "Etc/UTC"
    locale: Annotated[str, matching(r"[a-z]{2,3}_[A-Z]{2}\.UTF-8", "write e.g. en_US.UTF-8")] = "en_US.UTF-8"

    @model_validator(mode="after")
    def _disks_agree(self) -> Installation:
        if self.models_disk == self.disk:
            raise ValueError("models_disk: is the system's disk; leave it out to have both on one")
        if self.keep_models and not self.models_disk:
            raise ValueError(
                "keep_models: needs --models-disk: models on the system's disk can't be kept safely, as an "
                "installer keeps a partition only when told its exact place"
            )
        return self


def read(**wishes: Any) -> Installation:
    """The decisions, checked. Raises SettingsError with a line for each wrong one."""
    try:
        return Installation.model_validate(wishes)
    except ValidationError as error:
        raise SettingsError(list(mistakes.lines(error, Installation))) from None


def render(wish: Installation) -> dict[str, str]:
    """The files that an installer reads, by name."""
    if wish.os == "debian":
        return {"preseed.cfg": preseed(wish)}
    text = yaml.safe_dump(user_data(wish), sort_keys=False, width=1000, allow_unicode=True)
    return {"user-data": f"#cloud-config\n{text}", "meta-data": f"instance-id: {wish.hostname}\n"}


def user_data(wish: Installation) -> dict[str, Any]:
    """Ubuntu's autoinstall: cloud-init reads it in the installer, and its own `user-data` at the first boot."""
    person = {
        "name": wish.user,
        "groups": ["adm", "sudo"],
        "shell": "/bin/bash",
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "ssh_authorized_keys": [wish.ssh_key],
    }
    first_boot = {"hostname": wish.hostname, "disable_root": True, "ssh_pwauth": False, "users": [person]}
    install: dict[str, Any] = {
        "version": 1,
        "locale": wish.locale,
        "keyboard": {"layout": "us"},
        "timezone": wish.timezone,
        "refresh-installer": {"update": False},
        "ssh": {"install-server": True, "allow-pw": False},
        "packages": ["python3"],
        "storage": {"swap": {"size": 0}, "config": _storage(wish)},
        "user-data": first_boot,
        "updates": "security",
        "shutdown": "reboot",
    }
    # subiquity knows disks by the kernel's names only. It reads this file again after the early commands.
    disks = [wish.disk, *([wish.models_disk] if wish.models_disk and not wish.keep_models else [])]
    named = [f'sed -i "s#path: {disk}\\$#path: $(readlink -f {disk})#" /autoinstall.yaml' for disk in disks]
    install["early-commands"] = [*([require_models(wish)] if wish.keep_models else []), *named]
    if wish.keep_models:
        install["late-commands"] = [mount_models(wish, "/target")]
    return {"autoinstall": install}


def _storage(wish: Installation) -> list[dict[str, Any]]:
    """curtin's actions: a disk that is to be kept is in none of them."""
    both = wish.models_disk is None
    system = _disk("system", wish.disk)
    esp = {**_partition("esp", "system", 1, "1G"), "flag": "boot", "grub_device": True}
    actions = [
        system,
        esp,
        {"id": "esp-fs", "type": "format", "volume": "esp", "fstype": "fat32"},
        _partition("root", "system", 2, f"{ROOT_GIB}G" if both else -1),
        {"id": "root-fs", "type": "format", "volume": "root", "fstype": "ext4", "label": "root"},
    ]
    mounts = [
        {"id": "root-mount", "type": "mount", "device": "root-fs", "path": "/"},
        {"id": "esp-mount", "type": "mount", "device": "esp-fs", "path": "/boot/efi"},
    ]
    if not wish.keep_models:
        if wish.models_disk:
            actions.append(_disk("store", wish.models_disk))
        actions += [
            _partition("models", "system" if both else "store", 3 if both else 1, -1),
            {"id": "models-fs", "type": "format", "volume": "models", "fstype": "ext4", "label": LABEL},
        ]
        options = {"path": wish.models_dir, "options": "defaults,noatime"}
        mounts.append({"id": "models-mount", "type": "mount", "device": "models-fs", **options})
    return actions + mounts


def _disk(name: str, path: str) -> dict[str, Any]:
    wiped = {"ptable": "gpt", "wipe": "superblock-recursive", "preserve": False}
    return {"id": name, "type": "disk", "path": path, **wiped}


def _partition(name: str, disk: str, number: int, size: str | int) -> dict[str, Any]:
    place = {"id": name, "type": "partition", "device": disk, "number": number, "size": size}
    return {**place, "wipe": "superblock", "preserve": False}


def require_models(wish: Installation) -> str:
    """The command that ends an installation before it writes, unless the models lie where they are said to lie.

    Whole disks are compared, so that the models' file system is on no disk that will be wiped.
    """
    block = "$(readlink -f /sys/class/block/${on##*/})/"
    return (
        f"on=$(readlink -f /dev/disk/by-label/{LABEL}) && wanted=$(readlink -f {wish.models_disk}) && "
        f'wiped=$(readlink -f {wish.disk}) && test -b "$on" && test "$wanted" != "$wiped" && '
        f'case "{block}" in */"${{wanted##*/}}"/*) true ;; *) false ;; esac'
    )


def mount_models(wish: Installation, target: str) -> str:
    """The command that has the kept models mounted by the installed system."""
    line = f"LABEL={LABEL} {wish.models_dir} auto defaults,noatime 0 2"
    return f"mkdir -p {target}{wish.models_dir} && echo '{line}' >> {target}/etc/fstab"


def preseed(wish: Installation) -> str:
    """Debian's answers; partman-auto partitions one disk, so a models disk is seen to at the end."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  (no HTML)
    )
    template = environment.get_template("autoinstall/preseed.cfg.j2")
    kept = {"require": require_models(wish), "mount": mount_models(wish, "/target")} if wish.keep_models else None
    return template.render(wish=wish, kept=kept, label=LABEL, root_mib=ROOT_GIB * 1024)


def next_steps(wish: Installation, folder: Path, name: str, address: str | None) -> list[str]:
    """How a machine boots into the installation, and what comes after."""
    if wish.os == "ubuntu":
        cidata = f"{folder}/cidata.iso"
        steps = [
            f"xorriso -as genisoimage -volid CIDATA -joliet -rock -output {cidata} "
            f"{folder}/user-data {folder}/meta-data",
            f"  or: cloud-localds {cidata} {folder}/user-data {folder}/meta-data",
            "boot Ubuntu Server 24.04's ISO with that image as a second medium (USB, or the BMC's virtual media);",
            "  it asks once before it wipes the disk, unless the kernel's command line has: autoinstall",
            f"  without a second medium: (cd {folder} && python3 -m http.server 8000), and on that command line:",
            "  autoinstall ds=nocloud\\;s=http://THIS_COMPUTER:8000/",
        ]
    else:
        steps = [
            f"(cd {folder} && python3 -m http.server 8000)",
            "boot Debian 13's netinst ISO, or its netboot kernel and initrd, with this on the kernel's command line:",
            "  auto=true priority=critical url=http://THIS_COMPUTER:8000/preseed.cfg",
            f"  or put it into the initrd: (cd {folder} && echo preseed.cfg | cpio -o -H newc | gzip) >> initrd.gz",
        ]
    return [*steps, f"then: moehost node add {name} --address {address or 'ADDRESS'} --user {wish.user}"]
