"""What a node knows of its engine."""

from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from moehost.confined import BUILDER
from roles.facts import CARDS, MissingPackages, Texts, from_json

ENGINE = "/opt/moehost/engine"
RELEASES = f"{ENGINE}/releases"
# Where engines are built.
WORKSHOP = "/var/lib/moehost-build"
# Where container images are made: root's, since root runs what lies there, and the builder may write to its workshop.
IMAGES = "/var/lib/moehost-image"
BAKERY = "moehost-image.service"
# What a build needs; binutils for the proof of what was built.
PACKAGES = ["binutils", "ccache", "cmake", "g++", "git", "ninja-build"]


class PackageCandidates(FactBase[dict[str, str]]):
    """The version that apt would install of each package that it could install, from the suites in use.

    + packages: names of packages
    """

    default = dict

    def command(self, packages: list[str]) -> StringCommand:
        return StringCommand("apt-cache", "policy", *(QuoteString(package) for package in packages))

    def process(self, output: list[str]) -> dict[str, str]:
        candidates, package = {}, ""
        for line in output:
            if not line.startswith(" "):
                package = line.rstrip(":")
            elif line.strip().startswith("Candidate:") and "(none)" not in line:
                candidates[package] = line.split()[1]
        return candidates


class Mirrors(FactBase[list[str]]):
    """The addresses that the node's own suite is fetched from, main archive first.

    + codename: name of the suite
    """

    default = list

    def command(self, codename: str) -> StringCommand:
        wanted = "$(CREATED_BY) $(RELEASE) $(COMPONENT) $(REPO_URI)"
        return StringCommand(
            "apt-get", "indextargets", "--format", QuoteString(wanted),
            "|", "grep", QuoteString(f"^Packages {codename} main "), "|| true",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[str]:
        return list(dict.fromkeys(line.split()[-1] for line in output))


class PackagedEngine(FactBase[dict[str, str]]):
    """The llama-server of a package: `package` version, real `path`, `sha256`, `version` line. Empty without one.

    + package: name of the package
    """

    default = dict

    def command(self, package: str) -> StringCommand:
        return StringCommand(
            "path=$(readlink -f /usr/bin/llama-server) && test -x \"$path\" || exit 0;",
            "echo package=$(dpkg-query -W -f '${Version}'", QuoteString(package), ");",
            "echo path=$path; echo sha256=$(sha256sum <\"$path\" | cut -c1-64);",
            "echo version=$(\"$path\" --version 2>&1 | grep -m1 version)",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output)


class PackagedWorker(FactBase[dict[str, str]]):
    """The rpc-server of the packages: its path as `rpc_server`, and the version of the `backend` that speaks to it.

    Empty where one of the two is missing.
    """

    default = dict

    def command(self) -> str:
        return (
            "backend=$(dpkg-query -W -f '${Version}' libggml0-backend-rpc 2>/dev/null); "
            "path=$(ls /usr/libexec/*/llama/bin/ggml-rpc-server 2>/dev/null | head -n 1); "
            'test -x "$path" -a -n "$backend" || exit 0; echo rpc_server=$path; echo backend=$backend'
        )

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output)


class Releases(FactBase[dict[str, Any]]):
    """The whole releases, newest first (`releases`), and the ones that `current`, `next` and `previous` link to.

    `leftovers` are what was on its way to be a release, or on its way out. A link to nothing counts as none: it is
    empty then.
    """

    @staticmethod
    def default() -> dict[str, Any]:
        return {"current": "", "next": "", "previous": "", "releases": [], "leftovers": []}

    def command(self) -> str:
        return (
            f"cd {ENGINE} 2>/dev/null || exit 0; for each in current next previous; do "
            'test -e $each/build.json && to=$(readlink $each) && echo "$each=${to##*/}"; done; '
            'ls -dt releases/*/build.json 2>/dev/null | sed "s,^releases/,release=,; s,/build.json$,,"; '
            "ls -d releases/.[!.]* 2>/dev/null | sed s,^releases/,leftover=,; true"
        )

    def process(self, output: list[str]) -> dict[str, Any]:
        found = self.default()
        for line in output:
            key, _, value = line.partition("=")
            if key in ("release", "leftover"):
                found[f"{key}s"].append(value)
            else:
                found[key] = value
        return found


class Catalogue(Releases):
    """What `Releases` says, with the build.json of each release and its `name` in `releases`."""

    def command(self) -> str:
        return (
            f"{super().command()}; ls -dt {RELEASES}/*/build.json 2>/dev/null | "
            "while read -r each; do echo ===; cat $each; done"
        )

    def process(self, output: list[str]) -> dict[str, Any]:
        listing, *builds = "\n".join(output).split("\n===\n")
        found = super().process(listing.splitlines())
        pairs = zip(found["releases"], builds, strict=True)
        return {**found, "releases": [{"name": each, **(from_json(build) or {})} for each, build in pairs]}


class Toolchain(Texts, FactBase[dict[str, str]]):
    """What a node builds with, as texts for `moehost.toolchain.parse`."""

    commands = {
        "compiler": 'version=$(c++ -dumpfullversion) && echo "gcc $version" || echo "clang $(c++ -dumpversion)"',
        "missing": str(MissingPackages().command(packages=PACKAGES)),
        "nvcc": "for each in $(readlink -f /usr/local/cuda*/bin/nvcc $(command -v nvcc) | sort -u); do "
        'test -x $each && echo "${each%/bin/nvcc} $($each --version | tail -n 2 | tr "\\n" " ")"; done',
        "cards": "nvidia-smi --query-gpu=compute_cap,memory.free --format=csv,noheader,nounits",
        "pci": CARDS,
        "cpu_flags": "grep -m 1 ^flags /proc/cpuinfo",
        "cores": "nproc",
        "available_kib": "grep ^MemAvailable /proc/meminfo",
    }


class Checkout(FactBase[dict[str, str]]):
    """The worktree that engines are built from: `commit`, and `build_number`, the length of its history.

    Empty where there is none, or where it is not what the commit says.
    """

    default = dict

    def command(self) -> str:
        git = f"runuser -u {BUILDER} -- git -C {WORKSHOP}/source"
        return (
            f"test -e {WORKSHOP}/source/.git/HEAD && {git} diff --quiet HEAD 2>/dev/null || exit 0; "
            f"echo commit=$({git} rev-parse HEAD); echo build_number=$({git} rev-list --count HEAD)"
        )

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output)


class Build(FactBase[dict[str, str]]):
    """How a build is getting on: `state` of its unit, `release` that the unit builds, `phase` that it is in and the
    `steps` of that (done/all), `result` of a unit that failed, and `done`: how many seconds it took, empty before its
    end.

    + folder: folder of the build
    + unit: name of the unit
    """

    default = dict

    def command(self, folder: str, unit: str) -> StringCommand:
        return StringCommand(
            "for each in state=ActiveState release=Description result=Result; do",
            'echo "${each%=*}=$(systemctl show --value --property ${each#*=}', QuoteString(unit), ')"; done;',
            "cd", QuoteString(folder), "2>/dev/null || exit 0;",
            "echo phase=$(grep '^== ' build.log 2>/dev/null | tail -n 1 | cut -c4-);",
            "echo steps=$(tac build.log 2>/dev/null | sed '/^== /q' | grep -m 1 -o '^.[0-9]*/[0-9]*]' | tr -d '[]');",
            "echo done=$(cat done 2>/dev/null)",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output)


class Images(Texts, FactBase[dict[str, str]]):
    """What decides over container images, as texts for `moehost.images.parse`."""

    commands = {
        "next": f"test -e {ENGINE}/next/build.json && basename $(readlink {ENGINE}/next)",
        "build": f"cat {ENGINE}/next/build.json",
        "releases": f"ls -d {RELEASES}/*/build.json | sed 's,/build.json$,,; s,.*/,,'",
        "images": "podman images --format json --filter 'reference=localhost/moehost/*'",
        # `<release> <address> <image> <digest>` of what was pushed.
        "pushed": f"cat {IMAGES}/pushed/*",
        "leftovers": f"systemctl --quiet is-active {BAKERY} || ls {IMAGES} | grep -vx pushed",
        "system": "cat /etc/os-release",
        "archives": "apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI) $(ORIGIN)' | "
        "sed -n 's/^Packages main //p'",
        "builder": f'echo "$(id -u {BUILDER}):$(id -g {BUILDER})"',
        "container": "systemd-detect-virt --container",
    }
