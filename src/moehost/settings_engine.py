"""What an owner may write of the engine and its image."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from moehost.setting import Fingerprint, Settings, matching

Commit = Annotated[str, matching(r"[0-9a-f]{40}", "write all 40 digits of a commit; a branch or tag moves")]
Architecture = Annotated[str, matching(r"[0-9]{2,3}[af]?", "write a compute capability without the dot, e.g. 120")]
CudaVersion = Annotated[str, matching(r"[0-9]{2}[.][0-9]", "write e.g. 12.9")]
CmakeOption = Annotated[str, matching(r"[A-Z][A-Z0-9_]*=[A-Za-z0-9_.;:/+-]*", "write NAME=VALUE")]
ImageName = Annotated[str, matching(r"[a-z0-9][A-Za-z0-9./_:@-]*", "write HOST/NAME")]
Repository = Annotated[
    str,
    matching(
        r"[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+",
        "write HOST/NAME in lower-case letters, without a tag: the release is the tag",
    ),
]
CUDA_REPOSITORY = "https://developer.download.nvidia.com/compute/cuda/repos"
# The engine that everything here was tried with. A newer commit is a decision: its flags, its memory and its speed
# are checked again (CONTRIBUTING.md, "A newer engine").
IK_URL = "https://github.com/ikawrakow/ik_llama.cpp.git"
IK_COMMIT = "8337e4cd3861406fc04e0854b1409cd1b027fbc9"


class Image(Settings):
    """The container image of an engine, made by the same recipe as the release."""

    base: ImageName | None = Field(
        None,
        description="image of Debian or Ubuntu that it is built in, by digest, e.g. NVIDIA's CUDA image with a "
        "compiler, `docker.io/nvidia/cuda@sha256:...`; without it a root file system is made on the node from its "
        "own mirror",
    )
    runtime: ImageName | None = Field(
        None,
        description="image that the programs are put on, by digest, e.g. NVIDIA's CUDA image without a compiler, "
        "which is much smaller; `base` by default",
    )
    push: Repository | None = Field(
        None, description="repository of yours that it is pushed to, e.g. `compute.home.arpa/ik_llama-cuda`"
    )

    @field_validator("base", "runtime")
    @classmethod
    def _images_are_pinned(cls, value: str | None) -> str | None:
        if value and not value.startswith("localhost/") and not re.search(r"@sha256:[0-9a-f]{64}$", value):
            raise ValueError(
                f"{value!r}: pin it by digest, NAME@sha256:...; `skopeo inspect` shows the digest of a tag"
            )
        return value


class Engine(Settings):
    """The llama-server to run."""

    source: Literal["git", "package"] = Field(
        "git",
        description="`git`: ik_llama.cpp, built on the node for this very machine; "
        "`package`: the distribution's llama.cpp (Debian 13 and later)",
    )
    url: str = Field(IK_URL, description="for `git`: repository, also a path on the node")
    commit: Commit = Field(IK_COMMIT, description="for `git`: the commit to build, all 40 digits of it")
    cuda: Literal["auto", "on", "off"] = Field(
        "auto", description="for `git`: whether it is built for NVIDIA cards; `auto`: if the node has one"
    )
    cuda_architectures: list[Architecture] = Field(
        default_factory=list,
        description="for `git`: compute capabilities to build for, e.g. `120`; those of the node's cards by default",
    )
    cuda_version: CudaVersion | None = Field(
        None,
        description="CUDA toolkit to build with, e.g. `12.9`; without it the newest usable one on the node, "
        "or one that the node gets from NVIDIA's repository",
    )
    cuda_repository: str = Field(CUDA_REPOSITORY, description="where NVIDIA's packages come from, or a mirror of it")
    cuda_key: Fingerprint | None = Field(
        None, description="fingerprint of that repository's key, if it is another one than NVIDIA's"
    )
    cmake_options: list[CmakeOption] = Field(
        default_factory=list, description="for `git`: options that are added last, e.g. `GGML_CUDA_F16=ON`"
    )
    rpc: bool = Field(
        False,
        description="whether the engine can share a model with other nodes (rpc.md), and has the program for that; "
        "both nodes need it, of the same engine",
    )
    image: Image | None = Field(None, description="for `git`: also make a container image")
    keep_releases: int = Field(3, ge=2, le=99, description="how many releases stay on the node")
    drain_s: int = Field(
        300, ge=0, description="how long a switch of engines waits for a moment in which no request is at work"
    )
    canary_share: float = Field(
        0.8,
        ge=0,
        le=1,
        description="what a new engine must reach of the old one's decode speed, else the old one comes back",
    )

    @model_validator(mode="after")
    def _image_is_of_a_build(self) -> Engine:
        if self.image and self.source != "git":
            raise ValueError(f"image belongs to source 'git', and source is {self.source!r}; leave one of them out")
        return self

    @field_validator("url")
    @classmethod
    def _url_is_whole(cls, value: str) -> str:
        if not re.fullmatch(r"(https://|ssh://|git@|/)[A-Za-z0-9@:/._~+-]+", value):
            raise ValueError(
                f"{value!r}: write https://HOST/PATH, ssh://USER@HOST/PATH or an absolute path on the node"
            )
        return value
