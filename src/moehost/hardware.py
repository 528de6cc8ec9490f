"""What a machine has, as far as placing a model depends on it; parsed from text that others have read."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from moehost.measured import Hardware, Measured, of_this

# What `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` is asked for, in the order it is read here.
NVIDIA_SMI_QUERY = "name,memory.total,compute_cap,pcie.link.gen.max,pcie.link.width.max"

# Memory bandwidth by the makers' data sheets, GB/s; the longest name contained in nvidia-smi's decides.
CARD_GB_S = {
    "RTX PRO 6000 Blackwell": 1792.0,
    "RTX PRO 5000 Blackwell": 1344.0,
    "RTX PRO 4500 Blackwell": 896.0,
    "RTX PRO 4000 Blackwell": 672.0,
    "RTX 6000 Ada": 960.0,
    "RTX 5000 Ada": 576.0,
    "RTX A6000": 768.0,
    "RTX A5000": 768.0,
    "RTX 5090": 1792.0,
    "RTX 5080": 960.0,
    "RTX 5070 Ti": 896.0,
    "RTX 4090": 1008.0,
    "RTX 4080": 717.0,
    "RTX 3090": 936.0,
    "RTX 3090 Ti": 1008.0,
    "Tesla V100": 900.0,
    "A100 80GB": 1935.0,
    "A100": 1555.0,
    "H100 PCIe": 2039.0,
    "H100 NVL": 3938.0,
    "H100": 3352.0,
    "H200": 4800.0,
    "B200": 8000.0,
    "L40S": 864.0,
    "L40": 864.0,
    "L4": 300.0,
}
UNKNOWN_CARD_GB_S = 500.0

# Host to device from pinned memory: PCIe 5.0 x16 measures 52 to 56 GB/s of 63 nominal; others in proportion.
PCIE_LANE_GB_S = {1: 0.2, 2: 0.41, 3: 0.81, 4: 1.63, 5: 3.25, 6: 6.5}

# Memory channels of a socket and what they run at, MT/s, by what lscpu calls the processor.
SOCKET_CHANNELS = (
    (r"EPYC 9..5", 12, 6400),
    (r"EPYC 9..4", 12, 4800),
    (r"EPYC 8..4", 6, 4800),
    (r"EPYC 7..[23]", 8, 3200),
    (r"Threadripper PRO 9", 8, 6400),
    (r"Threadripper PRO 7", 8, 5200),
    (r"Threadripper PRO [35]", 8, 3200),
    (r"Xeon.* 69", 12, 6400),
    (r"Xeon.* [68]5", 8, 5600),
    (r"Ryzen 9 [79]", 2, 5600),
)
BYTES_PER_TRANSFER = 8
UNKNOWN_SOCKET_GB_S = 80.0


class HardwareError(ValueError):
    """A description of a machine that cannot be used; one line naming the key and what is wrong."""


@dataclass(frozen=True)
class Cpu:
    """Processors of one machine; `cores` are physical ones, `l3_domains` the separate caches."""

    model: str
    sockets: int
    cores: int
    threads: int
    numa_nodes: int
    l3_domains: int

    @property
    def socket_memory(self) -> tuple[int, int] | None:
        """Memory channels of each socket and what they run at, MT/s; None for a processor that is not known."""
        found = ((channels, mt_s) for pattern, channels, mt_s in SOCKET_CHANNELS if re.search(pattern, self.model))
        return next(found, None)


@dataclass(frozen=True)
class Gpu:
    """One card: what its memory holds and delivers, and what reaches it from the host (GB/s, decimal)."""

    name: str
    vram_mib: int
    compute_capability: str
    bandwidth_gb_s: float
    pcie_gb_s: float


@dataclass(frozen=True)
class Node:
    """One machine. `assumptions` says, a line each, what was not known and what was put in its place."""

    cpu: Cpu
    memory_mib: int
    memory_bandwidth_gb_s: float
    gpus: tuple[Gpu, ...]
    assumptions: tuple[str, ...] = field(default=(), compare=False)

    @property
    def physical_cores(self) -> int:
        """Cores, not hardware threads, of all sockets."""
        return self.cpu.cores

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an owner should know before trusting a plan for this machine."""
        nodes = self.cpu.numa_nodes
        if nodes <= self.cpu.sockets:
            return self.assumptions
        what = "L3 caches" if nodes == self.cpu.l3_domains else "parts of a socket"
        return (
            *self.assumptions,
            f"node.cpu.numa_nodes: {what} are {nodes} NUMA nodes; set NPS1 in the BIOS",
        )

    @classmethod
    def from_json(cls, data: Any) -> Node:
        """Reads the NODE.json contract, in which bandwidths may be left out where the parts are known ones.

        Raises HardwareError with the key's path for a missing, unknown or wrong value.
        """
        top = _Reader("node", data, [key for key in cls.__dataclass_fields__ if key != "assumptions"])
        part = _Reader("node.cpu", top.get("cpu"), list(Cpu.__dataclass_fields__))
        counts = {key: part.count(key) for key in ("sockets", "cores", "threads", "numa_nodes", "l3_domains")}
        cpu = Cpu(part.text("model"), **counts)
        if cpu.threads < cpu.cores:
            raise HardwareError(f"node.cpu.threads: is {cpu.threads}, fewer than its {cpu.cores} cores")
        assumed: list[str] = []
        gpus = []
        for index, item in enumerate(top.items("gpus")):
            card = _Reader(f"node.gpus[{index}]", item, list(Gpu.__dataclass_fields__))
            name = card.text("name")
            gb_s = card.rate("bandwidth_gb_s") or _card_gb_s(name, card.path, assumed)
            pcie_gb_s = card.rate("pcie_gb_s") or _pcie_gb_s("", "", card.path, assumed)
            gpus.append(Gpu(name, card.count("vram_mib"), card.text("compute_capability"), gb_s, pcie_gb_s))
        memory_gb_s = top.rate("memory_bandwidth_gb_s") or _memory_gb_s(cpu, assumed)
        return cls(cpu, top.count("memory_mib"), memory_gb_s, tuple(gpus), tuple(assumed))

    def to_json(self) -> dict[str, Any]:
        """The NODE.json contract."""
        data = asdict(self)
        del data["assumptions"]
        return {**data, "gpus": list(data["gpus"])}


class _Reader:
    """Takes typed values out of one JSON object and names the path of what is missing, unknown or wrong."""

    def __init__(self, path: str, data: Any, keys: list[str]) -> None:
        self.path, self._data = path, data
        if not isinstance(data, dict):
            raise HardwareError(f"{path}: is {_shown(data)}, not an object")
        for key in data:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1) or [", ".join(keys)]
                raise HardwareError(f"{path}.{_shown(key)}: is no key here; write {near[0]}")

    def get(self, key: str) -> Any:
        if key not in self._data:
            raise HardwareError(f"{self.path}.{key}: is missing")
        return self._data[key]

    def _checked(self, key: str, value: Any, right: bool, what: str) -> Any:
        if not right:
            raise HardwareError(f"{self.path}.{key}: is {_shown(value)}, not {what}")
        return value

    def text(self, key: str) -> str:
        value = self.get(key)
        return str(self._checked(key, value, isinstance(value, str), "a text"))

    def count(self, key: str) -> int:
        value = self.get(key)
        return int(self._checked(key, value, type(value) is int and value > 0, "a whole number above 0"))

    def rate(self, key: str) -> float | None:
        """GB/s, or None where the key is left out."""
        value = self._data.get(key)
        if value is None:
            return None
        right = type(value) in (int, float) and 0 < value < 1e6
        return float(self._checked(key, value, right, "a number of GB/s above 0"))

    def items(self, key: str) -> list[Any]:
        value = self.get(key)
        return list(self._checked(key, value, isinstance(value, list), "a list"))


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:40]


def _card_gb_s(name: str, path: str, assumed: list[str]) -> float:
    known = max((card for card in CARD_GB_S if card in name), key=len, default=None)
    if known is None:
        assumed.append(f"{path}.bandwidth_gb_s: {name!r} is not known, taken as {UNKNOWN_CARD_GB_S} GB/s")
        return UNKNOWN_CARD_GB_S
    return CARD_GB_S[known]


def _pcie_gb_s(generation: str, width: str, path: str, assumed: list[str]) -> float:
    if generation.isdecimal() and width.isdecimal() and int(generation) in PCIE_LANE_GB_S:
        return round(PCIE_LANE_GB_S[int(generation)] * int(width), 1)
    assumed.append(f"{path}.pcie_gb_s: the link is not known, taken as PCIe 4.0 x16")
    return PCIE_LANE_GB_S[4] * 16


def _memory_gb_s(cpu: Cpu, assumed: list[str], found: Measured | None = None) -> float:
    key, memory = "node.memory_bandwidth_gb_s", cpu.socket_memory
    gb_s = memory[0] * memory[1] * BYTES_PER_TRANSFER / 1000 if memory else 0.0
    if found and (as_good_as_gb_s := found.peak_gb_s(gb_s * cpu.sockets)):
        assumed.append(
            f"{key}: measured {found.read_gb_s:.0f} GB/s read, as a nominal {as_good_as_gb_s:g} GB/s gives"
        )
        return as_good_as_gb_s
    if found:
        assumed.append(f"{key}: was measured beside a running llama-server, not used; stop it and measure again")
    if memory:
        assumed.append(f"{key}: taken as {gb_s} GB/s a socket, all channels filled")
        return gb_s * cpu.sockets
    assumed.append(f"{key}: {cpu.model!r} is not known, taken as {UNKNOWN_SOCKET_GB_S} GB/s")
    return UNKNOWN_SOCKET_GB_S


def node_from_facts(
    lscpu: str, meminfo: str, nvidia_smi: str = "", has_memory: str = "", l3_ids: str = "", measured: str = ""
) -> Node:
    """One machine from what its own tools print.

    + lscpu: `lscpu -J`, or plain `lscpu` under LC_ALL=C
    + meminfo: /proc/meminfo
    + nvidia_smi: CSV for `NVIDIA_SMI_QUERY`; empty where there is no driver
    + has_memory: /sys/devices/system/node/has_memory, which knows better than lscpu
    + l3_ids: /sys/devices/system/cpu/cpu*/cache/index3/id, one a line, where lscpu does not count caches
    + measured: measured.json, which `moehost measure` keeps; of other hardware, it is not used

    Raises HardwareError naming the text that cannot be read.
    """
    assumed: list[str] = []
    cpu = _cpu(lscpu, has_memory, l3_ids)
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    if total is None:
        raise HardwareError("meminfo: has no line MemTotal in kB")
    memory_mib = int(total[1]) // 1024
    found = of_this(Hardware(cpu.model, cpu.cores, memory_mib), measured, assumed)
    gpus = _gpus(nvidia_smi, assumed, found)
    return Node(cpu, memory_mib, _memory_gb_s(cpu, assumed, found), gpus, tuple(assumed))


def _lscpu_fields(text: str) -> dict[str, str]:
    if not text.lstrip().startswith("{"):
        rows = (line.partition(":") for line in text.splitlines())
        return {key.strip(): value.strip() for key, _, value in rows}
    found: dict[str, str] = {}
    waiting: list[Any] = list(json.loads(text)["lscpu"])
    for entry in waiting:  # newer versions nest, older ones do not
        found[entry["field"].rstrip(":")] = entry.get("data") or ""
        waiting += entry.get("children", [])
    return found


def _cpu(lscpu: str, has_memory: str, l3_ids: str) -> Cpu:
    try:
        fields = _lscpu_fields(lscpu)
        sockets = int(fields["Socket(s)"])
        caches = re.search(r"\((\d+) instances?\)", fields.get("L3 cache", ""))
        return Cpu(
            model=fields["Model name"],
            sockets=sockets,
            cores=int(fields["Core(s) per socket"]) * sockets,
            threads=int(fields["CPU(s)"]),
            numa_nodes=_listed(has_memory) or int(fields.get("NUMA node(s)", 1)),
            l3_domains=len(set(l3_ids.split())) or (int(caches[1]) if caches else sockets),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise HardwareError(f"lscpu: cannot be read ({error}); run it as LC_ALL=C lscpu -J") from error


def _listed(text: str) -> int:
    """How many numbers a kernel list such as ``0-3,8`` names."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def _gpus(nvidia_smi: str, assumed: list[str], measured: Measured | None) -> tuple[Gpu, ...]:
    gpus: list[Gpu] = []
    for line in filter(None, map(str.strip, nvidia_smi.splitlines())):
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(NVIDIA_SMI_QUERY.split(",")) or not values[1].isdecimal():
            raise HardwareError(f"nvidia-smi: {line[:80]!r} is no card; ask it for {NVIDIA_SMI_QUERY}")
        name, vram_mib, capability, generation, width = values
        path = f"node.gpus[{len(gpus)}]"
        pcie_gb_s = measured.pcie_gb_s(len(gpus), name) if measured else None
        if pcie_gb_s:
            assumed.append(f"{path}.pcie_gb_s: measured {pcie_gb_s:g} GB/s from the host")
        else:
            pcie_gb_s = _pcie_gb_s(generation, width, path, assumed)
        gpus.append(Gpu(name, int(vram_mib), capability, _card_gb_s(name, path, assumed), pcie_gb_s))
    return tuple(gpus)
