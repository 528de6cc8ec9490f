"""A repository as NVIDIA's, of empty packages: `apt_repository.py FOLDER` makes it, and prints its key's fingerprint.

Runs on the node. It has the shape of the real one: a flat repository in a folder for each distribution, signed
inline, its key beside the packages, the driver beside the toolkit.
"""

import email.utils
import hashlib
import os
import subprocess
import sys
from pathlib import Path

PLACE, KEY, TWO_KEYS = "debian13/x86_64", "8793F200.pub", "two-keys.pub"
# Each package, and what it depends on. Of the two toolkits the later one has cccl under its later name.
TOOLKIT = {
    "cuda-nvcc-{}": "cuda-crt-{}, libnvvm-{}, libnvptxcompiler-{}",
    "cuda-crt-{}": "",
    "libnvvm-{}": "",
    "libnvptxcompiler-{}": "",
    "cuda-cudart-dev-{}": "cuda-cudart-{}, cuda-driver-dev-{}",
    "cuda-cudart-{}": "cuda-toolkit-{}-config-common",
    "cuda-toolkit-{}-config-common": "",
    "cuda-driver-dev-{}": "",
    "libcublas-dev-{}": "libcublas-{}",
    "libcublas-{}": "cuda-toolkit-{}-config-common",
    "cuda-cuobjdump-{}": "",
    "cuda-toolkit-{}": "cuda-nvcc-{}, nsight-systems",
    "cuda-{}": "cuda-runtime-{}, cuda-toolkit-{}",
    "cuda-runtime-{}": "cuda-drivers",
}
DRIVER = {
    "cuda-drivers": "nvidia-open, libnvidia-compute",
    "nvidia-open": "",
    "libnvidia-compute": "",
    "nvidia-driver-cuda": "",
    "nvidia-kernel-open-dkms": "",
    "xserver-xorg-video-nvidia": "",
    "cuda-compat-13-1": "",
    "cuda-keyring": "",
    "nsight-systems": "",
}


def packages() -> dict[str, str]:
    """All packages and what they depend on."""
    found = dict(DRIVER)
    for series, cccl in (("13-1", "cuda-cccl-13-1"), ("13-3", "cccl-13-3")):
        found |= {name.format(series): needs.replace("{}", series) for name, needs in TOOLKIT.items()}
        found[cccl] = ""
    return found


def build(folder: Path, name: str, needs: str) -> str:
    """Make an empty package, and say what an index says of it."""
    control = folder / "DEBIAN/control"
    control.parent.mkdir(parents=True, exist_ok=True)
    control.write_text(
        f"Package: {name}\nVersion: 99.0-1\nArchitecture: amd64\nMaintainer: nobody <nobody@home.arpa>\n"
        + (f"Depends: {needs}\n" if needs else "")
        + "Description: stand-in of moehost's tests\n"
    )
    made = folder.parent / PLACE / f"{name}_99.0-1_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", folder, made], check=True, stdout=subprocess.DEVNULL)
    content = made.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{control.read_text()}Filename: ./{made.name}\nSize: {len(content)}\nSHA256: {digest}\n"


def main(root: Path) -> None:
    """Make the key, the packages and the index."""
    place, home = root / PLACE, root / "gnupg"
    place.mkdir(parents=True)
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--homedir", str(home), "--pinentry-mode", "loopback", "--passphrase", ""]
    for name in ("moehost-test", "somebody-else"):
        subprocess.run([*gpg, "--quick-generate-key", name, "ed25519", "sign", "never"], check=True)
    shown = subprocess.run([*gpg, "--list-keys", "--with-colons"], check=True, capture_output=True, text=True).stdout
    fingerprint = next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:"))
    subprocess.run([*gpg, "--armor", "--output", place / KEY, "--export", fingerprint], check=True)
    subprocess.run([*gpg, "--armor", "--output", place / TWO_KEYS, "--export"], check=True)

    index = "\n".join(build(root / "package", name, needs) for name, needs in packages().items())
    (place / "Packages").write_text(index)
    release = (
        f"Origin: NVIDIA\nLabel: NVIDIA CUDA\nDate: {email.utils.formatdate(usegmt=True)}\n"
        f"SHA256:\n {hashlib.sha256(index.encode()).hexdigest()} {len(index)} Packages\n"
    )
    subprocess.run(
        [*gpg, "--local-user", fingerprint, "--clearsign", "--output", place / "InRelease"],
        check=True,
        input=release.encode(),
    )
    # The agent has a socket in the home, and would not end by itself.
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    print(fingerprint)


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]))
