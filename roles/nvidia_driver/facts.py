"""What a node knows of its NVIDIA driver, and what apt could install of it."""

from pyinfra.api import FactBase, QuoteString, StringCommand

from roles.facts import FileStates, Texts

# Files of this role's own: nouveau off, nvidia_uvm at boot, and what may come from NVIDIA's repository.
NOUVEAU = "/etc/modprobe.d/moehost-nvidia.conf"
MODULES = "/etc/modules-load.d/moehost-nvidia.conf"
PREFERENCES = "/etc/apt/preferences.d/60-moehost-nvidia-driver"
# Where DKMS keeps the key that it signs modules with.
KEY = "/var/lib/dkms/mok.pub"
NAMES = "'*nvidia*' 'libcuda*' 'libnvcuvid*' 'libnvoptix*' 'cuda-drivers*' 'linux-image-*' 'linux-headers-*' "
NAMES += "'linux-generic*' 'linux-lowlatency*' 'linux-virtual*'"


class Driver(Texts, FactBase[dict[str, str]]):
    """The state of NVIDIA's driver, as texts for `moehost.driver.parse`; `files` is for FileStates."""

    commands = {
        "system": "cat /etc/os-release",
        # Display controllers (class 03) of NVIDIA, and what has them.
        "pci": 'for each in /sys/bus/pci/devices/*; do case "$(cat $each/class $each/vendor)" in 0x03*0x10de) '
        'echo "${each##*/} $(cat $each/device) $(basename "$(readlink $each/driver)")" ;; esac; done',
        "kernel": "uname -r",
        "kernels": "ls /lib/modules 2>/dev/null | sort -V | while read -r each; do test ! -e /boot/vmlinuz-$each || "
        'echo "$each $(find /lib/modules/$each -name "nvidia.ko*" -o -name "nvidia-current*.ko*" | head -n 1)"; done',
        "loaded": "cat /sys/module/nvidia/version",
        "taint": "cat /sys/module/nvidia/taint",
        "on_disk": "modinfo -F version nvidia",
        "licence": "modinfo -F license nvidia",
        "uvm": "ls -d /sys/module/nvidia_uvm",
        "smi": "{ test ! -e /usr/bin/nvidia-smi || timeout 60 nvidia-smi --query-gpu=driver_version "
        "--format=csv,noheader 2>&1; }",
        "reboot_required": "test -e /run/reboot-required && cat /run/reboot-required.pkgs || ls /run/reboot-required",
        # The last byte of the variable, where mokutil is missing; without EFI there is neither.
        "secure_boot": "{ mokutil --sb-state || tail -qc 1 /sys/firmware/efi/efivars/SecureBoot-* | od -An -tu1; }",
        "key": f"{{ mokutil --test-key {KEY} 2>&1; }}",
        "packages": "dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\\n' " + NAMES,
        "holds": "apt-mark showhold",
        "run_file": "ls /usr/bin/nvidia-uninstall",
        "stale_initrds": "! command -v update-initramfs >/dev/null || for each in /boot/initrd.img-*; do "
        f'test ! -e {NOUVEAU} || test ! "$each" -ot {NOUVEAU} || test ! -e /lib/modules/${{each#*.img-}} || '
        'echo "${each#*.img-}"; done',
        "persistenced": "systemctl cat nvidia-persistenced >/dev/null 2>&1 && "
        "{ systemctl is-enabled nvidia-persistenced; systemctl is-active nvidia-persistenced; }",
        "files": str(FileStates().command(paths=[NOUVEAU, MODULES, PREFERENCES])),
    }


class Offer(Texts, FactBase[dict[str, str]]):
    """What apt has of the driver, as texts for `moehost.driver_packages.Offer.parse`."""

    commands = {
        # Names of the suites in use, whatever the preferences say of them.
        "names": "apt-cache pkgnames | grep -E '^(linux-modules-nvidia-|linux-headers-|nvidia-)'",
        "versions": "apt-cache madison nvidia-driver-cuda",
        "components": "apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)' | "
        "sed -n 's/^Packages //p'",
    }


class Unmet(FactBase[list[str]]):
    """Why apt could not install packages, as it says itself; nothing where it could.

    + packages: names of packages
    """

    default = list

    def command(self, packages: list[str]) -> StringCommand:
        return StringCommand(
            "LC_ALL=C apt-get install --simulate --no-install-recommends --allow-downgrades",
            "--allow-change-held-packages", *(QuoteString(package) for package in packages), "2>&1 |",
            "sed -n '/unmet dependencies/,/^E:/{s/^ *//; /unmet dependencies/d; /^[EWN]:/d; p}; /^E:/p'",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[str]:
        return [" ".join(line.split()) for line in output]
