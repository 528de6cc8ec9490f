"""How an engine is built for one machine, and what the result is called.

The script `templates/ik_llama/build.j2` is the recipe; this is what goes into it. The node and the container image
run the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from moehost.settings_engine import Engine
from moehost.toolchain import AVX512, Cuda, Toolchain

# Programs of a release: the server, and the two that measure.
TARGETS = ("llama-server", "llama-bench", "llama-sweep-bench")
# What a node has to hold layers of another node's model.
RPC_TARGET = "rpc-server"


@dataclass(frozen=True)
class Recipe:
    """One build: what decides over its result, and nothing else.

    + commit: full hash
    + options: of CMake, NAME=VALUE, in order
    + compiler: e.g. `gcc 14.2.0`
    + isa: extensions of the processor that `-march=native` means
    + cuda: version of the toolkit, None without CUDA
    + architectures: compute capabilities, without dots
    """

    commit: str
    options: tuple[str, ...]
    compiler: str
    isa: tuple[str, ...]
    cuda: str | None
    architectures: tuple[str, ...]

    @property
    def release(self) -> str:
        """Name of the release: twelve digits of the commit, and eight of everything else."""
        rest = {key: value for key, value in asdict(self).items() if key != "commit"}
        digest = hashlib.sha256(json.dumps([rest, targets(self.options)], sort_keys=True).encode()).hexdigest()
        return f"{self.commit[:12]}-{digest[:8]}"


def targets(options: Sequence[str]) -> tuple[str, ...]:
    """The programs that are built with these options of CMake."""
    return (*TARGETS, *([RPC_TARGET] if "GGML_RPC=ON" in options else []))


def make(engine: Engine, chain: Toolchain, cuda: Cuda | None, architectures: tuple[str, ...]) -> Recipe:
    """The recipe for a node."""
    rpc = ["GGML_RPC=ON"] if engine.rpc else []
    options = (*_options(chain, cuda, architectures), *rpc, *engine.cmake_options)
    version = cuda.version if cuda else None
    return Recipe(engine.commit, options, chain.compiler, chain.isa, version, architectures if cuda else ())


def _options(chain: Toolchain, cuda: Cuda | None, architectures: tuple[str, ...]) -> Iterator[str]:
    yield from ("CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON")
    # -march=native does the same; not where a hypervisor masks what the compiler asks the processor for.
    yield from (f"{name}=ON" for name, flags in AVX512.items() if all(flag in chain.isa for flag in flags))
    if cuda:
        yield "GGML_CUDA=ON"
        # Code for these very cards: `native` needs a driver while it builds, and PTX a driver as new as the toolkit.
        yield f"CMAKE_CUDA_ARCHITECTURES={';'.join(f'{each}-real' for each in architectures)}"
    # One self-contained program: nothing to find at run time, nothing that another release could replace.
    yield "BUILD_SHARED_LIBS=OFF"
    yield from ("GGML_SCHED_MAX_COPIES=1", "LLAMA_CURL=OFF", "LLAMA_BUILD_TESTS=OFF")
    # ccache as we call it: upstream's own way depends on the generator.
    yield "GGML_CCACHE=OFF"
    languages = ("C", "CXX", "CUDA") if cuda else ("C", "CXX")
    yield from (f"CMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in languages)
