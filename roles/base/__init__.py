"""What every node has: packages, the service account, directories, and guards against apt."""

from pyinfra.api import deploy
from pyinfra.operations import files as pyinfra_files
from pyinfra.operations import server

from moehost.settings import Node
from roles.operations import dpkg_configured, files, packages, render

PACKAGES = ["aria2", "ca-certificates", "curl", "iproute2", "procps", "python3"]
PROGRAMS = "/usr/local/libexec/moehost"
DIRECTORIES = [
    # path, owner, mode
    ("/etc/moehost", "root", "755"),
    ("/etc/needrestart/conf.d", "root", "755"),
    ("/opt/moehost/engine/releases", "root", "755"),
    (PROGRAMS, "root", "755"),
]


@deploy("Base")
def base(node: Node) -> None:
    dpkg_configured(name="Finish an interrupted dpkg")
    files(
        name="Keep apt from waiting for nobody, and from upgrades that break the service",
        contents={"/etc/apt/apt.conf.d/52-moehost": render("base/apt.conf.j2")},
    )
    # Two deploys, or a timer of the system's, may hold the package lists' lock for a while.
    packages(name="Install packages", wanted=PACKAGES, _retries=5, _retry_delay=10)
    server.group(name="Add the group", group="moehost", system=True)
    server.user(
        name="Add the service account",
        user="moehost",
        group="moehost",
        system=True,
        home="/nonexistent",
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )
    for path, owner, mode in [*DIRECTORIES, (node.models_dir, "root", "755")]:
        pyinfra_files.directory(name=f"Make {path}", path=path, user=owner, group=owner, mode=mode)
    files(
        name="Keep needrestart from restarting a server that loads for minutes",
        contents={"/etc/needrestart/conf.d/60-moehost.conf": render("base/needrestart.conf.j2")},
    )
