"""Runtimes of containers beside Podman: what they must be able to do, and how Docker is told of CDI.

Sources: Docker's and containerd's documentation of CDI; pkg/config/engine/docker of nvidia-container-toolkit 1.20.0,
whose `EnableCDI` drops the features that a daemon.json had before, which is why the text is made here.
"""

from __future__ import annotations

import json
import re

from moehost.cdi import CdiError

FIRST_WITH_CDI = {"docker": (25, 0), "containerd": (1, 7)}
NAMES = {"docker": "Docker", "containerd": "containerd"}


def check(runtime: str, said: str) -> None:
    """Raise CdiError if a runtime is absent or too old for CDI, by what it says of its version.

    Podman may answer to the name docker: it is no Docker.
    """
    found = re.search(rf"^{runtime}\b.*?\sv?(\d+)[.](\d+)", said, re.MULTILINE | re.IGNORECASE)
    first, name = FIRST_WITH_CDI[runtime], NAMES[runtime]
    if not found:
        raise CdiError(f"nvidia.container_runtimes: {name} is not installed; install it, or take {runtime!r} out")
    if (int(found[1]), int(found[2])) < first:
        raise CdiError(
            f"nvidia.container_runtimes: {name} {found[1]}.{found[2]} knows no CDI, {first[0]}.{first[1]} and later "
            f"do; upgrade it, or take {runtime!r} out"
        )


def docker_config(text: str) -> str:
    """A daemon.json with CDI; the text itself if it has it. Raises CdiError for what is no object of JSON."""
    try:
        config = json.loads(text or "{}")
        if config.get("features", {}).get("cdi") is True:
            return text
        config["features"] = {**config.get("features", {}), "cdi": True}
    except (ValueError, AttributeError, TypeError):
        raise CdiError("/etc/docker/daemon.json is not the object that Docker reads; correct it by hand") from None
    return json.dumps(config, indent=4) + "\n"
