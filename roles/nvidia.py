"""NVIDIA's repository, which the CUDA toolkit comes from and, on Debian, the driver."""

from moehost import nvidia_repository
from moehost.apt import AptSource
from moehost.nvidia_repository import Distribution
from roles.operations import render


def cuda_source(there: Distribution, repository: str, fingerprint: str | None) -> AptSource:
    """The source as both roles have it: whichever is first writes the same files."""
    preferences = render("ik_llama/cuda.preferences.j2")
    return nvidia_repository.source(there, repository, fingerprint, preferences)
