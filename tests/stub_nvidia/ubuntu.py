"""The packages of the stub of Ubuntu's archive: names and dependencies as noble has them, files of `on_node`."""

from __future__ import annotations

from collections.abc import Iterator

import packages as debian
from packages import LDCONFIG, LIBRARIES, Package

# What is kept up, one that must never be chosen, and the only one of an archive that lacks both.
DRIVERS = {"24.04": ["580.95.05", "590.48.01", "535.274.02"]}
# The kernel of each flavour: that of the release runs (see on_node/dress-as-ubuntu), that of later ones is there to
# be booted.
KERNELS = {"generic": "6.8.0-51", "generic-hwe-24.04": "6.14.0-37"}
MODULES = ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm")
# The real one links objects and adds Canonical's signature.
LINK = (
    '#!/bin/sh\nset -e\n[ "$1" = configure ] || exit 0\ncd {0}\n'
    'for each in bits/*.o; do name=${{each#bits/}}; cp "$each" "${{name%.o}}.ko"; done\ndepmod {1}\n'
)
UNLINK = '#!/bin/sh\nset -e\n[ "$1" != remove ] || {{ rm -f {0}/*.ko && depmod {1}; }}\n'


def kernel(flavour: str) -> Iterator[Package]:
    """A kernel, and the metapackages that upgrades of it come by."""
    number = KERNELS[flavour]
    release, deb = f"{number}-generic", f"{number}.52"
    tree = {f"/usr/lib/modules/{release}/modules.{each}": "" for each in ("order", "builtin", "builtin.modinfo")}
    texts = {f"/boot/vmlinuz-{release}": "", **tree}
    yield Package(f"linux-image-{release}", deb, texts=texts)
    yield Package(f"linux-headers-{release}", deb)
    for part in ("image", "headers"):
        yield Package(f"linux-{part}-{flavour}", deb, f"linux-{part}-{release}")
    yield Package(f"linux-{flavour}", deb, f"linux-image-{flavour} (= {deb}), linux-headers-{flavour} (= {deb})")


def modules(version: str, kind: str, flavour: str) -> Iterator[Package]:
    """The prebuilt open modules for a kernel, and the metapackage that follows its flavour."""
    branch, number = version.partition(".")[0], KERNELS[flavour]
    release, deb, name = f"{number}-generic", f"{number}.52+1", f"linux-modules-nvidia-{branch}{kind}-open"
    place = f"/usr/lib/modules/{release}/kernel/nvidia-{branch}{'srv' if kind else ''}-open"
    files = {f"{place}/bits/{each}.o": f"modules/open-dkms/{version}/{each}.ko" for each in MODULES}
    common = f"nvidia-kernel-common-{branch}{kind} (>= {version})"
    needs = f"linux-image-{release}, {common}"
    scripts = {"postinst": LINK.format(place, release), "postrm": UNLINK.format(place, release)}
    yield Package(f"{name}-{release}", deb, needs, files=files, **scripts)
    yield Package(f"{name}-{flavour}", deb, f"{name}-{release} (= {deb}), {common}")


def driver(version: str, kind: str) -> Iterator[Package]:
    """The driver's packages of a branch: of kind `-server`, or the one for desktops."""
    branch, deb = version.partition(".")[0], f"{version}-0ubuntu0.24.04.1"
    same, other = f"{branch}{kind} (= {deb})", branch if kind else f"{branch}-server"
    firmware = f"nvidia-firmware-{branch}{kind}-{version}"
    yield Package(firmware, deb)
    yield Package(f"nvidia-kernel-common-{branch}{kind}", deb, firmware, f"nvidia-kernel-common-{other}")
    yield Package(f"nvidia-kernel-source-{branch}{kind}-open", deb)
    yield Package(f"libnvidia-cfg1-{branch}{kind}", deb)
    links, files = {}, {}
    for library in ("libcuda.so", "libnvidia-ml.so"):
        links |= {f"{LIBRARIES}/{library}.1": f"{library}.{version}", f"{LIBRARIES}/{library}": f"{library}.1"}
        files[f"{LIBRARIES}/{library}.{version}"] = f"libcuda/{version}"
    compute, others = f"libnvidia-compute-{branch}{kind}", f"libnvidia-compute-{other}"
    yield Package(compute, deb, conflicts=others, files=files, links=links, postinst=LDCONFIG, postrm=LDCONFIG)
    smi = {"/usr/bin/nvidia-smi": "nvidia_smi.py"}
    yield Package(f"nvidia-utils-{branch}{kind}", deb, f"python3, libnvidia-compute-{same}", files=smi)
    # Neither enabled nor to be: a rule of udev starts it when a card gets its driver.
    unit = "/usr/lib/systemd/system/nvidia-persistenced.service"
    files = {"/usr/bin/nvidia-persistenced": "nvidia-persistenced", unit: "ubuntu-persistenced.service"}
    yield Package(f"nvidia-compute-utils-{branch}{kind}", deb, f"libnvidia-compute-{same}", files=files)
    parts = ("libnvidia-cfg1", "libnvidia-compute", "nvidia-compute-utils", "nvidia-kernel-common")
    needs = [*(f"{part}-{same}" for part in parts), f"nvidia-kernel-source-{branch}{kind}-open (= {deb})"]
    yield Package(f"nvidia-headless-no-dkms-{branch}{kind}-open", deb, ", ".join(needs))


def packages(repository: str, release: str) -> Iterator[Package]:
    """All packages of a repository for this release of Ubuntu."""
    if repository == "toolkit":
        yield from debian.packages(repository, release)
        return
    for flavour in KERNELS:
        yield from kernel(flavour)
    *kept, old = DRIVERS[release]
    for version in [old] if repository == "old" else kept:
        for kind in ("-server", ""):
            yield from driver(version, kind)
            for flavour in KERNELS:
                yield from modules(version, kind, flavour)


def places(release: str) -> dict[str, tuple[str, str, str, str]]:
    """The repositories: folder and key below the server's root, origin and label."""
    archives = {name: (name, f"{name}.asc", "Ubuntu", "Ubuntu") for name in ("ubuntu", "old")}
    return {**archives, "toolkit": debian.TOOLKIT}
