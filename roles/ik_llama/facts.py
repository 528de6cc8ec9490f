"""What a node knows of its engine."""

from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

CURRENT = "/opt/moehost/engine/current"


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


class Release(FactBase[dict[str, Any]]):
    """Which release is current (`current`: its name or empty) and which ones are whole (`releases`)."""

    default = dict

    def command(self) -> str:
        return (
            f'echo current=$(basename "$(readlink {CURRENT})" 2>/dev/null); '
            "cd /opt/moehost/engine/releases 2>/dev/null && for each in */build.json; do "
            'test -f "$each" && echo "release=${each%/build.json}"; done; true'
        )

    def process(self, output: list[str]) -> dict[str, Any]:
        current, releases = "", []
        for line in output:
            key, _, value = line.partition("=")
            if key == "current":
                current = value
            else:
                releases.append(value)
        return {"current": current, "releases": releases}
