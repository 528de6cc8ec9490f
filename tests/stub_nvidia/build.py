"""Runs on the node: `build.py ROOT` makes the stub repositories below ROOT/www, and prints their keys as JSON.

The packages are made by dpkg-deb, the indices by apt-ftparchive, the signatures by gpg; libraries and modules by gcc.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import packages as debian
import ubuntu
from packages import Package

HERE = Path(__file__).parent / "on_node"
LICENCES = {"open-dkms": "Dual MIT/GPL", "dkms": "NVIDIA"}


def run(*words: str | Path, **more) -> str:
    """What a program prints; it must succeed."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def compile_all(made: Path, versions: list[str]) -> None:
    """Make the libraries and the modules of these drivers."""
    for version in versions:
        library = made / "libcuda" / version
        library.parent.mkdir(parents=True, exist_ok=True)
        define = f'-DVERSION="{version}"'
        run("gcc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", define, "-o", library, HERE / "libcuda.c")
        for kind, licence in LICENCES.items():
            for name in ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm"):
                module = made / "modules" / kind / version / f"{name}.ko"
                module.parent.mkdir(parents=True, exist_ok=True)
                texts = [define, f'-DLICENCE="{licence}"', f'-DNAME="{name.replace("-", "_")}"']
                run("gcc", "-c", *texts, "-o", module, HERE / "module.c")


def build(package: Package, made: Path, folder: Path, place: Path) -> None:
    """Make a package."""
    version = package.version.rpartition("-")[0]
    for path, source in package.files.items():
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (made / source).exists():
            target.write_bytes((made / source).read_bytes())
        else:
            target.write_text((HERE / source).read_text().replace("@VERSION@", version))
        target.chmod(0o755 if "/bin/" in path else 0o644)
    for path, text in package.texts.items():
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for path, target in package.links.items():
        (folder / path.lstrip("/")).symlink_to(target)
    control = folder / "DEBIAN"
    control.mkdir(parents=True)
    fields = {
        "Package": package.name, "Version": package.version, "Architecture": "amd64",
        "Maintainer": "nobody <nobody@home.arpa>", "Depends": package.depends, "Conflicts": package.conflicts,
        "Description": "stub of moehost's tests",
    }  # fmt: skip
    (control / "control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items() if value))
    for script, text in (("postinst", package.postinst), ("postrm", package.postrm)):
        if text:
            (control / script).write_text(text)
            (control / script).chmod(0o755)
    conffiles = [path for path in (*package.files, *package.texts) if path.startswith("/etc/")]
    (control / "conffiles").write_text("".join(f"{path}\n" for path in conffiles))
    run("dpkg-deb", "--build", "--root-owner-group", "-Znone", folder, place)


def main(root: Path) -> None:
    """Make the keys, the packages and the indices."""
    made, home, keys = root / "made", root / "gnupg", {}
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--homedir", str(home), "--pinentry-mode", "loopback", "--passphrase", ""]
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines())
    system = {"debian": debian, "ubuntu": ubuntu}[release["ID"]]
    version = release["VERSION_ID"].strip('"')
    compile_all(made, system.DRIVERS[version])
    for name, (path, key, origin, label) in system.places(version).items():
        place = root / "www" / path
        place.mkdir(parents=True)
        for package in system.packages(name, version):
            build(package, made, root / "folders" / name / f"{package.name}-{package.version}", place)
        run(*gpg, "--quick-generate-key", f"stub-{name}", "ed25519", "sign", "never")
        shown = run(*gpg, "--list-keys", "--with-colons", f"=stub-{name}")
        keys[name] = next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:"))
        run(*gpg, "--armor", "--output", root / "www" / key, "--export", keys[name])
        (place / "Packages").write_text(run("apt-ftparchive", "packages", ".", cwd=place))
        options = [f"-oAPT::FTPArchive::Release::{field}" for field in (f"Origin={origin}", f"Label={label}")]
        text = run("apt-ftparchive", *options, "release", ".", cwd=place)
        run(*gpg, "--local-user", keys[name], "--clearsign", "--output", place / "InRelease", input=text)
    # The agent has a socket in the home, and would not end by itself.
    run("gpgconf", "--homedir", home, "--kill", "all")
    print(json.dumps(keys))


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]))
