"""What an owner may write of the host's tuning, a policy for each area; docs/tuning.md says why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moehost.setting import Settings, matching

Policy = Literal["auto", "off"]
KernelParameter = Annotated[
    str, matching(r"[A-Za-z0-9_.-]+(=[A-Za-z0-9_.,:/-]*)?", "write e.g. iommu=pt, without spaces and quotes")
]
POOL_WORDS = ("hugepages", "hugepagesz", "default_hugepagesz")


class Tuning(Settings):
    """How the machine is tuned; `off` takes an area's files away and puts back the values from before."""

    numa: Policy = Field(
        "auto", description="on several NUMA nodes: no balancing by the kernel, no reclaim before memory from afar"
    )
    huge_pages: Literal["auto", "thp", "static", "off"] = Field(
        "auto",
        description="`auto`: `thp`, and how much of a model lies on huge pages is only reported; `thp`: transparent "
        "ones, asked for by the engine; `static`: pools for the services' models, on the kernel's command line (for "
        "ik_llama.cpp on the CPU); with `thp` and `static` a model that does not lie on them is a failed start",
    )
    huge_page_size: Literal["2M", "1G"] = Field("2M", description="page size of the pools of `static`")
    cpu: Policy = Field("auto", description="frequency governor `performance`")
    boost: bool | None = Field(
        None, description="whether cores may run above their base clock; left alone if not given"
    )
    cpu_latency_us: int | None = Field(
        None, ge=0, le=10000, description="longest wake-up from idle that a core may take, µs; no limit if not given"
    )
    memory: Policy = Field(
        "auto", description="write-back in absolute sizes, little swapping, a reserve of free memory"
    )
    io: Policy = Field("auto", description="read-ahead and scheduler of the disk that holds the models")
    kernel_parameters: list[KernelParameter] = Field(
        default_factory=list, description="further words for the kernel's command line, e.g. `iommu=pt`"
    )

    @model_validator(mode="after")
    def _pools_have_one_size(self) -> Tuning:
        for word in self.kernel_parameters:
            if self.huge_pages == "static" and word.partition("=")[0] in POOL_WORDS:
                raise ValueError(
                    f"kernel_parameters: {word} is what huge_pages: 'static' writes; take one of them out"
                )
        return self
