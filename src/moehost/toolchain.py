"""What a node has to build an engine with, parsed from text that others have read; and whether that will do.

Sources of the rules: NVIDIA's Blackwell compatibility guide (first toolkit with code for a card),
ggml-org/llama.cpp #28581 and #28784 (the toolkits that miscompile), ik_llama.cpp's ggml/src/iqk/iqk_config.h (which
AVX-512 extensions its fast path needs).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

# First CUDA toolkit that makes code for a compute capability.
FIRST_CUDA = {
    "86": (11, 1),
    "89": (11, 8),
    "90": (11, 8),
    "100": (12, 8),
    "103": (12, 9),
    "120": (12, 8),
}
# nvcc 13.2 before this build computes IQ1_S, IQ2_S and IQ3_S wrongly on 12.0 cards.
FIRST_GOOD_13_2 = 86
# What the compiler's -march=native depends on, as far as the engine's kernels use it.
ISA = re.compile(r"avx\w*|fma|f16c|bmi2|gfni|vaes|vpclmulqdq|amx_\w+")
AVX512 = {
    "GGML_AVX512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
}
MIB_PER_JOB = 2048


class ToolchainError(ValueError):
    """Why an engine can't be built on a node as it is: one line that says what, where and how to mend it."""


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit: `version` as nvcc says it (12.9.86), and its folder."""

    version: str
    path: str

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number."""
        major, minor, _ = self.version.split(".")
        return int(major), int(minor)

    @property
    def is_miscompiling(self) -> bool:
        """Whether it is one of the builds of 13.2 that compute wrongly on 12.0 cards."""
        return self.release == (13, 2) and int(self.version.split(".")[2]) < FIRST_GOOD_13_2


@dataclass(frozen=True)
class Toolchain:
    """What one node builds with.

    + compiler: e.g. `gcc 14.2.0`, empty without one
    + missing: packages that a build needs and the node lacks
    + cudas: CUDA toolkits on the node
    + cuda_cards: how many NVIDIA cards are on the PCI bus, with or without a driver
    + capabilities: compute capability of each card, from the driver
    + free_vram_mib: what is free on the fullest card
    + isa: the processor's extensions that matter, sorted
    + cores, available_mib: for the number of jobs
    """

    compiler: str
    missing: tuple[str, ...]
    cudas: tuple[Cuda, ...]
    cuda_cards: int
    capabilities: tuple[str, ...]
    free_vram_mib: int
    isa: tuple[str, ...]
    cores: int
    available_mib: int

    @property
    def has_vnni(self) -> bool:
        """Whether the processor has the instruction that the engine's fast path lives on."""
        return "avx512_vnni" in self.isa

    @property
    def jobs(self) -> int:
        """How many compilers may run at once; one needs up to 2 GiB with CUDA."""
        return max(1, min(self.cores, self.available_mib // MIB_PER_JOB))

    @property
    def memory_max_mib(self) -> int:
        """What a build may use: most of what nobody uses now, and never what a running server has."""
        return max(MIB_PER_JOB, self.available_mib * 8 // 10)


def parse(texts: Mapping[str, str]) -> Toolchain:
    """What the fact `roles.ik_llama.facts.Toolchain` reads, by its keys; what is missing on the node is empty."""
    free = [int(line.split(",")[1]) for line in texts["cards"].splitlines() if re.search(r",\s*\d+$", line)]
    available = re.search(r"\d+", texts["available_kib"])
    cores = re.search(r"\d+", texts["cores"])
    return Toolchain(
        compiler=texts["compiler"].strip(),
        missing=tuple(texts["missing"].split()),
        cudas=tuple(_cudas(texts["nvcc"])),
        cuda_cards=len(texts["pci"].split()),
        capabilities=tuple(line.split(",")[0].strip() for line in texts["cards"].splitlines() if "," in line),
        free_vram_mib=min(free, default=0),
        isa=tuple(sorted(flag for flag in texts["cpu_flags"].split() if ISA.fullmatch(flag))),
        cores=int(cores[0]) if cores else 1,
        available_mib=int(available[0]) // 1024 if available else MIB_PER_JOB,
    )


def _cudas(text: str) -> Iterable[Cuda]:
    """Toolkits from lines of `FOLDER ... V12.9.86`, each folder once."""
    found = re.findall(r"^(/\S+) .*\bV(\d+[.]\d+[.]\d+)", text, re.MULTILINE)
    return [Cuda(version, path) for path, version in dict(found).items()]


def architectures(chain: Toolchain, cuda: Literal["auto", "on", "off"], wanted: Iterable[str]) -> tuple[str, ...]:
    """The compute capabilities that a build is for, without dots and sorted; none for a build without CUDA.

    Raises ToolchainError where there are cards that nobody can name.
    """
    if cuda == "off" or (cuda == "auto" and not chain.cuda_cards and not chain.capabilities):
        return ()
    if named := tuple(wanted):
        return named
    if not chain.capabilities:
        what = "engine.cuda is 'on'" if not chain.cuda_cards else f"the node has {chain.cuda_cards} NVIDIA card(s)"
        raise ToolchainError(
            f"{what}, but nvidia-smi names no card to build for; install the driver, or set "
            "engine.cuda_architectures (e.g. ['120']), or engine.cuda: 'off'"
        )
    return tuple(sorted({each.replace(".", "") for each in chain.capabilities}, key=int))


def first_cuda(wanted: Iterable[str]) -> tuple[int, int]:
    """The first toolkit that makes code for all of these compute capabilities."""
    return max((FIRST_CUDA.get(each.rstrip("af"), (11, 0)) for each in wanted), default=(11, 0))


def choose(chain: Toolchain, wanted: tuple[str, ...], version: str | None) -> Cuda | None:
    """The toolkit to build with: the newest one on the node that will do (of `version`, if given), else None.

    Raises ToolchainError where the version that was asked for will not do.
    """
    if version and tuple(map(int, version.split("."))) < first_cuda(wanted):
        raise ToolchainError(_too_old(version, wanted))
    fits = [each for each in chain.cudas if refusal(each, wanted) is None]
    if version:
        fits = [each for each in fits if each.version.startswith(f"{version}.")]
    return max(fits, key=lambda each: each.release, default=None)


def refusal(cuda: Cuda, wanted: tuple[str, ...]) -> str | None:
    """Why a toolkit can't be used for cards of these compute capabilities, or None."""
    if cuda.release < first_cuda(wanted):
        return _too_old(cuda.version, wanted)
    if cuda.is_miscompiling and any(each.startswith("12") for each in wanted):
        return (
            f"CUDA {cuda.version} computes IQ1_S, IQ2_S and IQ3_S wrongly on cards of compute capability 12.x "
            "(mended in 13.2.86); use 12.8 to 13.1, or 13.3"
        )
    return None


def _too_old(version: str, wanted: Iterable[str]) -> str:
    needed = first_cuda(wanted)
    return (
        f"CUDA {version} makes no code for compute capability {', '.join(wanted)}; "
        f"set engine.cuda_version to {needed[0]}.{needed[1]} or later"
    )
