"""What a node is made of."""

from pyinfra.api import FactBase

from roles.base import PROGRAMS
from roles.facts import Texts
from roles.ik_llama.facts import ENGINE

# What serves, and what it stands on; patterns of dpkg.
PACKAGES = (
    "linux-image-* linux-modules-nvidia-* nvidia-* libnvidia-* cuda-* libcu* podman crun runc conmon netavark "
    "systemd libc6 libstdc++6 llama.cpp* libggml* libllama* python3"
)
ENTRY = "'${db:Status-Status} ${Package} ${Version}\\n'"
FILES = (
    "/etc/systemd/system/llama-server-*.service /etc/systemd/system/moehost-*.service "
    f"/etc/containers/systemd/llama-server-*.container {PROGRAMS}/* "
    "/etc/sysctl.d/*moehost* /etc/tmpfiles.d/*moehost* /etc/default/grub.d/*moehost*"
)


class Stack(Texts, FactBase[dict[str, str]]):
    """Kernel, packages, driver, engine, images, models and units of a node, as text for `moehost.lock`."""

    commands = {
        "os_release": "cat /etc/os-release",
        "kernel": "uname -r",
        "words": "cat /proc/cmdline",
        # None of the patterns is for the shell to expand.
        "packages": f"( set -f; dpkg-query -W -f {ENTRY} {PACKAGES} )",
        "driver": "nvidia-smi --query-gpu=driver_version,vbios_version --format=csv,noheader | sort -u",
        "release": f"basename $(readlink {ENGINE}/current)",
        "build": f"cat {ENGINE}/current/build.json",
        "programs": f"( cd {ENGINE}/current/bin && sha256sum * )",
        "images": "podman images --no-trunc --filter reference='localhost/moehost/*' "
        "--format '{{.ID}} {{.Repository}}:{{.Tag}}'",
        # Of the models that services have: a plan names each word of a command line in a line of its own.
        "models": "( sed -n 's,^ *\"\\(/.*\\)/[^/]*[.]gguf\".*,\\1,p' /etc/moehost/*/plan.json | sort -u | "
        'while read -r folder; do cat "$folder/manifest.json"; done )',
        "files": f"sha256sum {FILES}",
    }
