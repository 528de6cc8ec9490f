"""The packages of the stub repositories: names and dependencies of the real ones, files of `on_node`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

# By version of Debian: the branch that is wanted, an update of it, and one that must never be chosen. NVIDIA has no
# 580 for Debian 13.
DRIVERS = {
    "12": ["580.95.05", "580.105.08", "610.43.02"],
    "13": ["595.45.04", "595.58.03", "610.43.02"],
}
TOOLKITS = ["1.17.4", "1.18.2", "1.20.0", "1.21.0"]
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
# What the real package has to this effect; its text is not known here.
PINNING = (
    "Package: nvidia-* libnvidia-* libcuda1 libcudadebugger1 firmware-nvidia-gsp\n"
    "Pin: version {}.*\nPin-Priority: 1000\n"
)
# By its path: dpkg looks for programs where packages put them.
DKMS = '#!/bin/sh\nset -e\n[ "$1" != configure ] || /usr/local/sbin/dkms autoinstall\n'
UNDKMS = '#!/bin/sh\nset -e\n[ "$1" != remove ] || /usr/local/sbin/dkms autoinstall\n'
LDCONFIG = "#!/bin/sh\nldconfig\n"
ENABLE = '#!/bin/sh\nset -e\n[ "$1" = configure ] && [ -d /run/systemd/system ] || exit 0\nsystemctl daemon-reload\n'
NOW = "systemctl enable --quiet --now nvidia-cdi-refresh.path nvidia-cdi-refresh.service || true\n"


@dataclass(frozen=True)
class Package:
    """A package: `files` are paths on the node and files of `on_node` or of the build, or literal texts."""

    name: str
    version: str
    depends: str = ""
    conflicts: str = ""
    files: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    postinst: str = ""
    postrm: str = ""


def driver(version: str, is_first: bool) -> Iterator[Package]:
    """The driver's packages of NVIDIA's repository for Debian; the pin comes with the first version of a branch."""
    branch, deb = version.partition(".")[0], f"{version}-1"
    same = f"(= {deb})"
    libraries = f"libcuda1 {same}, libnvidia-ml1 {same}, libnvidia-cfg1 {same}"
    if is_first:
        texts = {f"/etc/apt/preferences.d/nvidia-driver-pinning-{branch}": PINNING.format(branch)}
        yield Package(f"nvidia-driver-pinning-{branch}", f"{branch}-1", texts=texts)
    for name, needs in {
        "nvidia-driver-cuda": f"{libraries}, nvidia-smi {same}, nvidia-persistenced, "
        f"nvidia-kernel-open-dkms {same} | nvidia-kernel-dkms {same}",
        "nvidia-kernel-support": f"nvidia-modprobe, firmware-nvidia-gsp {same}",
        "firmware-nvidia-gsp": "",
        "libnvidia-cfg1": "",
        # What a node without a screen has no use for.
        "nvidia-driver": f"nvidia-driver-cuda {same}",
        "nvidia-open": f"nvidia-driver {same}, nvidia-kernel-open-dkms {same}",
        "cuda-drivers": f"nvidia-driver {same}",
    }.items():
        yield Package(name, deb, needs)
    for kind, other in (("open-dkms", "nvidia-kernel-dkms"), ("dkms", "nvidia-kernel-open-dkms")):
        modules = ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm")
        files = {f"/usr/src/nvidia-{version}/{each}.ko": f"modules/{kind}/{version}/{each}.ko" for each in modules}
        support = f"nvidia-kernel-support {same}"
        yield Package(f"nvidia-kernel-{kind}", deb, support, other, files=files, postinst=DKMS, postrm=UNDKMS)
    yield Package("nvidia-smi", deb, f"python3, libnvidia-ml1 {same}", files={"/usr/bin/nvidia-smi": "nvidia_smi.py"})
    for name, library in (("libcuda1", "libcuda.so"), ("libnvidia-ml1", "libnvidia-ml.so")):
        links = {f"{LIBRARIES}/{library}.1": f"{library}.{version}", f"{LIBRARIES}/{library}": f"{library}.1"}
        files = {f"{LIBRARIES}/{library}.{version}": f"libcuda/{version}"}
        yield Package(name, deb, files=files, links=links, postinst=LDCONFIG, postrm=LDCONFIG)
    yield Package("nvidia-modprobe", deb, files={"/usr/bin/nvidia-modprobe": "nvidia-modprobe"})
    unit = "/usr/lib/systemd/system/nvidia-persistenced.service"
    files = {"/usr/bin/nvidia-persistenced": "nvidia-persistenced", unit: "nvidia-persistenced.service"}
    # Enabled and not started: what is configured before the modules could not start.
    enable = f"{ENABLE}systemctl enable --quiet nvidia-persistenced\n"
    yield Package("nvidia-persistenced", deb, files=files, postinst=enable)


def toolkit(version: str) -> Iterator[Package]:
    """The container toolkit's packages."""
    deb, units = f"{version}-1", "/usr/lib/systemd/system/nvidia-cdi-refresh"
    files = {"/usr/bin/nvidia-ctk": "nvidia_ctk.py", "/usr/bin/nvidia-cdi-hook": "nvidia-cdi-hook"}
    postinst = ""
    if tuple(map(int, version.split("."))) >= (1, 18, 0):
        files |= {f"{units}.service": "nvidia-cdi-refresh.service", f"{units}.path": "nvidia-cdi-refresh.path"}
        files["/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"] = "nvidia-cdi-refresh.env"
        postinst = ENABLE + NOW
    yield Package("nvidia-container-toolkit-base", deb, "python3", files=files, postinst=postinst)
    yield Package("libnvidia-container1", deb)
    yield Package("libnvidia-container-tools", deb, f"libnvidia-container1 (>= {deb})")
    needs = f"libnvidia-container-tools (>= {deb}), nvidia-container-toolkit-base (= {deb})"
    yield Package("nvidia-container-toolkit", deb, needs)


def packages(repository: str, debian: str) -> Iterator[Package]:
    """All packages of a repository for this version of Debian."""
    if repository == "toolkit":
        for version in TOOLKITS:
            yield from toolkit(version)
        return
    pinned: set[str] = set()
    for version in DRIVERS[debian]:
        yield from driver(version, is_first=version[:3] not in pinned)
        pinned.add(version[:3])


# The names of NVIDIA's keys in its folders for Debian.
KEYS = {"12": "3bf863cc.pub", "13": "8793F200.pub"}
# The repository of the container toolkit, as `places` has it.
TOOLKIT = (
    "libnvidia-container/stable/deb/amd64",
    "libnvidia-container/gpgkey",
    "https://nvidia.github.io/libnvidia-container",
    "NVIDIA CORPORATION <cudatools@nvidia.com>",
)


def places(debian: str) -> dict[str, tuple[str, str, str, str]]:
    """The repositories: folder and key below the server's root, origin and label as the real ones have them."""
    folder = f"cuda/repos/debian{debian}/x86_64"
    return {"cuda": (folder, f"{folder}/{KEYS[debian]}", "NVIDIA", "NVIDIA CUDA"), "toolkit": TOOLKIT}
