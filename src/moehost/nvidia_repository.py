"""NVIDIA's repository for a distribution: where it is, whose key it has, what is taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moehost.apt import AptSource


@dataclass(frozen=True)
class Distribution:
    """What NVIDIA has for a distribution: folder in the repository, its key, and the toolkit to take from it."""

    folder: str
    key: str
    fingerprint: str
    version: str


# NVIDIA's keys: file in the repository's folder, and fingerprint. Debian 13 has another one, since its apt believes
# no signature with SHA-1 any more.
CUDATOOLS = ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC")
KITMAKER_DEBIAN_13 = ("8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200")
# 12.9 makes code for all cards from Maxwell to Blackwell. The repository for Debian 13 has 13.x only: 13.1 is what
# ik_llama.cpp's own CUDA 13 images are built with; 13.0 and 13.2 before 13.2.2 make code for 12.0 cards that crashes
# (MXFP4) or computes wrongly (IQ1_S, IQ2_S, IQ3_S).
DISTRIBUTIONS = {
    ("ubuntu", "24.04"): Distribution("ubuntu2404", *CUDATOOLS, "12.9"),
    ("debian", "12"): Distribution("debian12", *CUDATOOLS, "12.9"),
    ("debian", "13"): Distribution("debian13", *KITMAKER_DEBIAN_13, "13.1"),
}


def distribution(system: Mapping[str, str]) -> Distribution | None:
    """What NVIDIA has for a system with these fields of os-release, if moehost knows of it."""
    return DISTRIBUTIONS.get((system.get("ID", ""), system.get("VERSION_ID", "")))


def source(there: Distribution, repository: str, fingerprint: str | None, preferences: str) -> AptSource:
    """The one source for apt that toolkit and driver come from.

    + repository: address of NVIDIA's repositories, or of a mirror of them
    + fingerprint: of the key, if it is not NVIDIA's
    + preferences: what may come from there; of the driver nothing, unless another file allows it by name
    """
    uri = f"{repository.rstrip('/')}/{there.folder}/x86_64"
    return AptSource(
        id="cuda",
        uri=uri,
        suite="/",
        components=(),
        key_url=f"{uri}/{there.key}",
        fingerprint=fingerprint or there.fingerprint,
        preferences=preferences,
    )
