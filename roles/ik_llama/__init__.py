"""The engine: a release below `/opt/moehost/engine/releases`, and the link `current` to one of them."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.ik_llama.operations import package_available, package_installed, packaged_release

PACKAGE = "llama.cpp-tools"


@deploy("Engine")
def ik_llama(node: Node) -> None:
    package_available(name="Have a suite with llama.cpp", package=PACKAGE)
    package_installed(name="Install the packaged llama.cpp", package=PACKAGE, _retries=5, _retry_delay=10)
    packaged_release(name="Make it the current release", package=PACKAGE)
