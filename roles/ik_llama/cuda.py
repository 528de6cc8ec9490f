"""Where a node gets a CUDA toolkit from that has none for the engine."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import operation
from pyinfra.operations import apt

from moehost import nvidia_repository
from moehost.settings_engine import CUDA_REPOSITORY
from roles.apt import apt_source
from roles.facts import OsRelease
from roles.ik_llama.facts import PackageCandidates
from roles.nvidia import cuda_source
from roles.operations import packages, refuse

# What ik_llama.cpp compiles with and links (cudart, cublas, cublasLt and cuda_driver in ggml/src/CMakeLists.txt, and
# CUB), and what the proof of a build looks into it with. The whole of cuda-toolkit is some 7 GB, most of it profilers
# and libraries that no part of the engine asks for. Of two names the one counts that apt knows: it changed in 13.3.
PARTS = [
    ["cuda-nvcc"],
    ["cuda-cudart-dev"],
    ["cuda-cccl", "cccl"],
    ["cuda-driver-dev"],
    ["libcublas-dev"],
    ["cuda-cuobjdump"],
]


@operation()
def cuda_toolkit(
    version: str | None = None, repository: str = CUDA_REPOSITORY, fingerprint: str | None = None
) -> Iterator[Any]:
    """
    Have what building the engine needs of a CUDA toolkit, from NVIDIA's repository, and not its driver.

    + version: e.g. `12.9`; None for the one that suits the distribution
    + repository: address of NVIDIA's repositories, or of a mirror of them
    + fingerprint: of the key, if it is not NVIDIA's
    """
    system = host.get_fact(OsRelease)
    there = nvidia_repository.distribution(system)
    if not there:
        yield refuse(
            f"moehost knows of no CUDA toolkit for {system.get('PRETTY_NAME', 'this system')}; install one, it is "
            "found under /usr/local/cuda*"
        )
        return
    source = cuda_source(there, repository, fingerprint)
    yield from apt_source._inner(source=source)

    series = (version or there.version).replace(".", "-")
    parts = [[f"{name}-{series}" for name in part] for part in PARTS]
    asked = [*(name for part in parts for name in part), "cuda-nvcc-*"]
    found = host.get_fact(PackageCandidates, packages=asked)
    if _lacking(parts, found):
        # The lists are older than the source, maybe from before a run that was cut off.
        yield from apt.update._inner()
        found = host.get_fact(PackageCandidates, packages=asked)
    if lacking := _lacking(parts, found):
        offered = sorted(name.removeprefix("cuda-nvcc-") for name in found if name.startswith("cuda-nvcc-"))
        yield refuse(
            f"engine.cuda_version: {source.uri} has no {', '.join(lacking)}; cuda-nvcc is there for "
            f"{', '.join(offered).replace('-', '.') or 'no version, see what `apt-get update` says'}"
        )
        return
    yield from packages._inner(wanted=[next(name for name in part if name in found) for part in parts])


def _lacking(parts: list[list[str]], found: dict[str, str]) -> list[str]:
    """The parts that apt has under none of their names."""
    return [" or ".join(part) for part in parts if not any(name in found for name in part)]
