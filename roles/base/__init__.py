"""What every node has: packages, the service account, directories, and guards against apt."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.base.operations import account_and_directories
from roles.operations import dpkg_configured, files, packages, render

PACKAGES = ["aria2", "ca-certificates", "curl", "iproute2", "procps", "python3"]
PROGRAMS = "/usr/local/libexec/moehost"


@deploy("Base")
def base(node: Node) -> None:
    dpkg_configured(name="Finish an interrupted dpkg")
    files(
        name="Install guards against apt, and what the node has of moehost",
        contents={
            "/etc/apt/apt.conf.d/52-moehost": render("base/apt.conf.j2"),
            "/etc/needrestart/conf.d/60-moehost.conf": render("base/needrestart.conf.j2"),
            "/etc/sysusers.d/moehost.conf": render("base/sysusers.conf.j2"),
            "/etc/tmpfiles.d/moehost.conf": render("base/tmpfiles.conf.j2", models_dir=node.models_dir),
        },
    )
    # Two deploys, or a timer of the system's, may hold the package lists' lock for a while.
    packages(name="Install packages", wanted=PACKAGES, _retries=5, _retry_delay=10)
    account_and_directories(name="Make the service account and the directories", models_dir=node.models_dir)
