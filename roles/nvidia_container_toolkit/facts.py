"""What a node has to bring its cards into containers."""

from pyinfra.api import FactBase, QuoteString, StringCommand

from moehost.cdi import PACKAGES
from roles.facts import CARDS, Texts

ENV = "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"
DAEMON_JSON = "/etc/docker/daemon.json"
# Both are read by awk: a last line without an end gets one.
# In YAML, and in JSON on one line: what a specification is of. Podman reads no files with other endings.
FIELDS = r"""(cdiVersion|kind|name)"?: *"?[^", ]+|lib(cuda|nvidia-ml)[.]so[.][0-9]{3,}([.][0-9]+)+"""


class ContainerToolkit(Texts, FactBase[dict[str, str]]):
    """Podman, NVIDIA's toolkit and the CDI specifications, as texts for `moehost.cdi.parse`.

    `units`: whether the refresh's path and service are enabled, and the path is active, a line each.
    """

    commands = {
        "cards": CARDS,
        "podman": "podman --version",
        "packages": f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}} ${{Version}}\\n' {' '.join(PACKAGES)}",
        "ctk": "nvidia-ctk --version",
        "env": f"awk 1 {ENV}",
        "units": "systemctl is-enabled nvidia-cdi-refresh.path nvidia-cdi-refresh.service; "
        "systemctl is-active nvidia-cdi-refresh.path",
        "module": "cat /sys/module/nvidia/version",
        "specs": "for each in /etc/cdi/*.yaml /etc/cdi/*.json /var/run/cdi/*.yaml /var/run/cdi/*.json; do "
        f"""test ! -f $each || {{ echo "=$each"; grep -oE '{FIELDS}' $each | sort -u; }}; done""",
    }


class PackageVersions(FactBase[dict[str, list[str]]]):
    """The versions of each of these packages that apt has in its lists, whatever the preferences say of them.

    + packages: names of packages
    """

    default = dict

    def command(self, packages: list[str]) -> StringCommand:
        return StringCommand(
            "apt-cache", "madison", *(QuoteString(package) for package in packages), "2>/dev/null || true"
        )

    def process(self, output: list[str]) -> dict[str, list[str]]:
        versions: dict[str, dict[str, None]] = {}
        for line in output:
            package, version, _ = (field.strip() for field in line.split("|", 2))
            # A version may be in several repositories.
            versions.setdefault(package, {})[version] = None
        return {package: list(each) for package, each in versions.items()}


class Runtimes(Texts, FactBase[dict[str, str]]):
    """Docker and containerd, as texts: versions, configuration, whether they run, and what runs has of CDI."""

    commands = {
        "cards": CARDS,
        "docker": "docker --version",
        "docker_config": f"awk 1 {DAEMON_JSON}",
        "docker_state": "systemctl is-active docker.service",
        # Empty where the daemon that runs does without CDI.
        "docker_folders": "docker info --format '{{range .CDISpecDirs}}{{println .}}{{end}}'",
        "containerd": "containerd --version",
        "containerd_config": "containerd config dump | grep enable_cdi",
    }
