"""The engine: releases below `/opt/moehost/engine/releases`, and which of them is next. The services switch to it."""

from pyinfra.api import deploy

from moehost.settings import Node
from roles.ik_llama.build import release
from roles.ik_llama.image import image
from roles.ik_llama.operations import RPC_PACKAGES, package_available, package_installed, packaged_release, pruned

PACKAGE = "llama.cpp-tools"


@deploy("Engine")
def ik_llama(node: Node) -> None:
    if node.is_router_only:
        return
    if node.engine.source == "package":
        package_available(name="Have a suite with llama.cpp", package=PACKAGE)
        wanted = [PACKAGE, *(RPC_PACKAGES if node.engine.rpc else [])]
        package_installed(name="Install the packaged llama.cpp", wanted=wanted, _retries=5, _retry_delay=10)
        packaged_release(name="Make it a release", package=PACKAGE, rpc=node.engine.rpc)
    else:
        release(name=f"Build ik_llama.cpp {node.engine.commit[:12]} for this machine, prove it", engine=node.engine)
    pruned(name="Remove old releases", keep=node.engine.keep_releases)
    if node.engine.image:
        # After that, so that the images of the releases that have just gone go, too.
        image(name="Make a container image of the next release", engine=node.engine)
