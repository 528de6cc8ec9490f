"""What an owner may write in the inventory, with defaults; everything else is refused by name.

The models are the reference of all settings: each field's description is what `docs/settings.md` prints.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from moehost import mistakes, source
from moehost.setting import Settings, matching
from moehost.settings_access import Firewall, Gateway, Router
from moehost.settings_engine import Engine
from moehost.settings_metrics import Metrics, Notify
from moehost.settings_nvidia import Nvidia
from moehost.settings_rpc import Rpc
from moehost.settings_tuning import Tuning

# Keys of an inventory that belong to pyinfra: global arguments and its connectors' data.
PYINFRA_KEYS = re.compile(r"^(_|(ssh|podman|podmanssh|docker|dockerssh|fake|chroot|vagrant|terraform)_)")


Name = Annotated[
    str, matching(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", "use lower-case letters, digits and dashes, at most 40")
]
ModelName = Annotated[
    str, matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "use letters, digits, dots, dashes and underscores")
]
Folder = Annotated[
    str,
    matching(
        r"(/(?![.]{1,2}(/|$))[A-Za-z0-9._-]+)+", "write an absolute path of letters, digits and ._-, without .."
    ),
]
MemoryMax = Annotated[
    str, matching(r"[1-9][0-9]?%|100%|[1-9][0-9]*[MGT]|infinity", "write e.g. 92%, 700G or infinity, as in systemd")
]
Port = Annotated[int, Field(ge=1, le=65535)]
KvType = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
# What the rest of the house must know of, and what would show a secret: not for `server_args`.
OWN_SETTING = {
    **dict.fromkeys(("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo"), "model"),
    **dict.fromkeys(("-a", "--alias"), "name"),
    **dict.fromkeys(("--api-key", "--api-key-file"), "api_keys_file"),
    **dict.fromkeys(("-hft", "--hf-token"), "hf_token_file"),
    "--host": "host",
    "--port": "port",
}
SLOT_TOKENS = 256


class SettingsError(ValueError):
    """Wrong settings; `lines` has one line for each, with the key's path, the reason and the way to mend it."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class Model(Settings):
    """A model of the store."""

    name: ModelName = Field(description="folder of the model below `models_dir`")
    source: str = Field(
        description="`hf://OWNER/REPO/PATH@COMMIT`, `https://HOST/X.gguf`, `file:///PATH` (on the node) "
        "or `file:PATH` (on this computer, below this folder); any one shard names a whole split set"
    )
    revision: str | None = Field(None, description="commit of the `hf://` repository, if not in `source`")
    sha256: dict[str, str] = Field(
        default_factory=dict,
        description="SHA-256 of each file; required for `https://`, known by the hub for `hf://`",
    )

    @model_validator(mode="after")
    def _source_is_complete(self) -> Model:
        source.check_sha256(source.parse(self.source, self.revision), self.sha256)
        return self


class Sampling(Settings):
    """What the server samples with when a request does not say."""

    temperature: float = Field(0.7, ge=0, le=5)
    top_k: int = Field(40, ge=0)
    top_p: float = Field(0.95, ge=0, le=1)
    min_p: float = Field(0.01, ge=0, le=1)
    repeat_penalty: float = Field(1.2, ge=0, le=5)


class Workload(Settings):
    """The typical request; the placement `auto` minimises the time that it takes."""

    prompt_tokens: int = Field(4096, ge=1, description="length of the prompt")
    answer_tokens: int = Field(512, ge=1, description="length of the answer")


class DailyUse(Settings):
    """What you need for daily use; `moehost bench` says whether it is met."""

    decode_tok_s: float = Field(10.0, ge=0, description="an answer's tokens per second, at least: reading speed")
    first_token_1k_s: float = Field(
        10.0, ge=0, description="seconds from a prompt of 1k tokens to the first of the answer, at most"
    )
    first_token_16k_s: float = Field(60.0, ge=0, description="the same for a prompt of 16k tokens")


class Service(Settings):
    """One llama-server under systemd: `llama-server-<name>.service`."""

    name: Name = Field(description="name of the unit and of the model in the API")
    model: Model
    runtime: Literal["native", "container"] = Field(
        "native",
        description="`native`: a systemd unit; `container`: a Podman Quadlet that runs the image of `engine.image`",
    )
    sys_nice: bool | None = Field(
        None,
        description="whether the server has the capability SYS_NICE; if not given, in a container; see nvidia.md for "
        "what that buys",
    )
    placement: Literal["auto", "cpu-moe", "tensor-split", "manual", "rpc"] = Field(
        "auto",
        description="where the routed experts live: `auto` (the planner fills the cards), `cpu-moe` (all on the "
        "CPU), `tensor-split` (as `gpu_experts` says), `manual` (as `rules` says), `rpc` (whole layers on other "
        "nodes, too: rpc.md); see planning.md",
    )
    gpu_experts: list[str] = Field(
        default_factory=list,
        description="for `tensor-split`: the layers whose experts each card takes, e.g. `0-12` and `47-59`",
    )
    rules: list[str] = Field(
        default_factory=list, description="for `manual`: `REGEX=DEVICE`, the first found in a name decides"
    )
    cpu_moe: bool = Field(True, description="for `manual`: whether the experts that no rule names stay on the CPU")
    tensor_split: list[float] = Field(
        default_factory=list, description="shares of the cards in the layers, not with `auto`, which chooses them"
    )
    rpc: Rpc | None = Field(None, description="for `rpc`: the nodes that hold layers, and the network to them")
    workload: Workload = Field(default_factory=lambda: Workload.model_validate({}))
    daily_use: DailyUse = Field(default_factory=lambda: DailyUse.model_validate({}))
    context: int | None = Field(
        None, ge=512, description="context in tokens, shared by all slots; what the model was trained on if not given"
    )
    parallel: int = Field(1, ge=1, le=64, description="slots: requests that are served at once")
    kv_type: KvType = Field("f16", description="type of the KV cache")
    batch: int | None = Field(None, ge=32, description="tokens of a prompt that are handed over at once")
    ubatch: int | None = Field(
        None, ge=32, description="tokens of a prompt that are computed at once; chosen for the workload if not given"
    )
    threads: int | None = Field(None, ge=1, description="threads of decode; some cores fewer than all if not given")
    threads_batch: int | None = Field(None, ge=1, description="threads of prompt processing; all cores if not given")
    margin_mib: int = Field(1024, ge=0, description="what the planner leaves free on each card, MiB")
    host: str = Field("127.0.0.1", description="address to listen on; loopback unless you have a reason")
    port: Port = Field(8080, description="port to listen on")
    sampling: Sampling = Field(default_factory=lambda: Sampling.model_validate({}))
    api_keys_file: str | None = Field(
        None, description="file on this computer with one key per line; without it a key is made on the node"
    )
    numa: Literal["auto", "off", "interleave", "distribute", "isolate", "numactl"] = Field(
        "auto",
        description="on several NUMA nodes: `auto` and `interleave` spread the memory over all; `distribute`, "
        "`isolate` and `numactl` are values of the engine's `--numa`, the first and the last with the memory spread, "
        "too; on one node nothing is done",
    )
    memory_max: MemoryMax = Field("92%", description="MemoryMax= of the unit")
    start_timeout_s: int = Field(2700, ge=10, description="how long a load may take: 200 GB take minutes")
    warm_up_timeout_s: int = Field(
        1800,
        ge=10,
        description="how long all prompts of the warm-up together may take, after the load: some minutes where "
        "every expert of a large model is on the CPU",
    )
    server_args: list[str] = Field(default_factory=list, description="flags that are added last, checked as all are")

    @field_validator("host")
    @classmethod
    def _host_is_an_address(cls, value: str) -> str:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(f"{value!r} is no IP address; 127.0.0.1 is the default") from None
        if getattr(address, "scope_id", None):
            raise ValueError(f"{value!r} names an interface, which a unit would change; use an address without %")
        return value

    @field_validator("gpu_experts")
    @classmethod
    def _experts_are_layers(cls, value: list[str]) -> list[str]:
        for text in value:
            layers(text)
        return value

    @field_validator("server_args")
    @classmethod
    def _args_can_stand_in_a_unit(cls, value: list[str]) -> list[str]:
        for arg in value:
            if arg in OWN_SETTING:
                raise ValueError(f"{arg} belongs to the setting {OWN_SETTING[arg]!r}; write it there")
            if not arg or re.search(r"[\\%$\n\"']", arg):
                raise ValueError(
                    f"{arg!r} is empty or holds one of \\ % $ \" ' or a line break, which a unit would change"
                )
        return value

    @model_validator(mode="after")
    def _slots_have_room(self) -> Service:
        each = self.context // self.parallel if self.context else SLOT_TOKENS
        if each < SLOT_TOKENS:
            raise ValueError(
                f"context {self.context} shared by {self.parallel} slots leaves {each} tokens each, "
                f"less than {SLOT_TOKENS}; raise context or lower parallel"
            )
        return self

    @model_validator(mode="after")
    def _workers_have_a_placement(self) -> Service:
        if (self.placement == "rpc") != (self.rpc is not None):
            raise ValueError("placement 'rpc' and the setting rpc belong together; write both or none")
        if self.rpc and self.runtime != "native":
            raise ValueError(
                "placement 'rpc' is for runtime 'native': a container's network has addresses of its own"
            )
        return self

    @property
    def unit(self) -> str:
        """Name of the systemd unit."""
        return f"llama-server-{self.name}.service"

    @property
    def start_limit_s(self) -> int:
        """How long a start may take: more than its steps have, so that it is they who say what was waited for."""
        return self.start_timeout_s + self.warm_up_timeout_s + 60

    @property
    def has_sys_nice(self) -> bool:
        """Whether the server has the capability SYS_NICE."""
        return self.runtime == "container" if self.sys_nice is None else self.sys_nice

    @property
    def url_host(self) -> str:
        """How this machine itself addresses the server."""
        address = ipaddress.ip_address(self.host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return f"[{address}]" if address.version == 6 else str(address)

    @property
    def is_on_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return ipaddress.ip_address(self.host).is_loopback


class Node(Settings):
    """A machine: its cards, its engine, its models, its services."""

    services: list[Service] = Field(default_factory=list, description="the services of this node")
    gpu: Literal["auto", "require", "off"] = Field(
        "auto",
        description="`auto`: NVIDIA cards are set up where there are some; `require`: a machine without a card is an "
        "error; `off`: cards are left alone",
    )
    nvidia: Nvidia = Field(default_factory=lambda: Nvidia.model_validate({}))
    tuning: Tuning = Field(default_factory=lambda: Tuning.model_validate({}))
    allow_reboot: bool = Field(
        False, description="whether a deploy may reboot the node where that is needed; else it says so and stops"
    )
    engine: Engine = Field(default_factory=lambda: Engine.model_validate({}))
    models_dir: Folder = Field("/srv/models", description="the model store")
    hf_endpoint: str = Field(source.HUB_ENDPOINT, description="hub that `hf://` sources come from")
    hf_token_file: str | None = Field(None, description="file on this computer that holds the hub's token")
    calibration_file: str | None = Field(
        None, description="file on this computer that `moehost calibrate` made of measurements of this node"
    )
    download_connections: int = Field(8, ge=1, le=16, description="parallel ranges of a download")
    free_space_reserve_mib: int = Field(1024, ge=0, description="what a download must leave free on the disk, MiB")
    verify_models: Literal["weekly", "monthly", "off"] = Field(
        "monthly", description="how often the node compares its models with their checksums"
    )
    gateway: Gateway | None = Field(
        None, description="a TLS proxy for the computers of your network; none if not given"
    )
    router: Router | None = Field(None, description="stands before several nodes; none if not given")
    firewall: Firewall = Field(default_factory=lambda: Firewall.model_validate({}))
    metrics: Metrics | None = Field(None, description="figures for Prometheus; none if not given")
    notify: Notify | None = Field(None, description="how you are told when a unit fails; not at all if not given")

    @field_validator("hf_endpoint")
    @classmethod
    def _endpoint_is_safe(cls, value: str) -> str:
        return source.require_safe(value)

    @model_validator(mode="after")
    def _services_do_not_collide(self) -> Node:
        for key in ("name", "port"):
            seen: dict[Any, int] = {}
            for index, service in enumerate(self.services):
                value = getattr(service, key)
                if value in seen:
                    raise ValueError(f"services[{index}].{key}: {value!r} is taken by services[{seen[value]}]")
                seen[value] = index
        models: dict[str, Model] = {}
        for index, service in enumerate(self.services):
            if models.setdefault(service.model.name, service.model) != service.model:
                raise ValueError(f"services[{index}].model: another service has a different model of this name")
        return self

    @model_validator(mode="after")
    def _containers_have_an_image(self) -> Node:
        for index, service in enumerate(self.services):
            if service.runtime == "container" and not self.engine.image:
                raise ValueError(
                    f"services[{index}].runtime: 'container' needs the image that engine.image makes; write "
                    "engine: {'image': {...}}, or runtime 'native'"
                )
        return self

    @model_validator(mode="after")
    def _pools_have_a_reader(self) -> Node:
        if self.tuning.huge_pages == "static" and self.engine.source == "package":
            raise ValueError(
                "tuning.huge_pages: 'static' is for ik_llama.cpp, a package's engine can't use such pages; write "
                "'thp', or engine: {'source': 'git'}"
            )
        return self

    @model_validator(mode="after")
    def _workers_are_guarded(self) -> Node:
        for index, service in enumerate(self.services):
            if service.rpc and self.firewall.policy == "off":
                raise ValueError(
                    f"services[{index}].rpc: a worker must be reached by this node alone, and firewall.policy is "
                    "'off'; write 'services' or 'closed'"
                )
            if service.rpc and not self.engine.rpc:
                raise ValueError(f"services[{index}].rpc: the engine has no RPC; write engine: {{'rpc': True}}")
        return self

    @model_validator(mode="after")
    def _ports_do_not_collide(self) -> Node:
        taken = {service.port: f"services[{index}].port" for index, service in enumerate(self.services)}
        others = {"gateway.port": self.gateway.port} if self.gateway else {}
        if self.router:
            others["router.port"] = self.router.port
        if self.metrics:
            others["metrics.port"] = self.metrics.port
            if self.metrics.prometheus:
                others["metrics.prometheus_port"] = self.metrics.prometheus_port
        for key, port in others.items():
            if port in taken:
                raise ValueError(f"{key}: {port} is taken by {taken[port]}")
            taken[port] = key
        return self

    @model_validator(mode="after")
    def _folders_are_of_one(self) -> Node:
        described = {"gateway": self.gateway, "router": self.router, "metrics": self.metrics, "notify": self.notify}
        for index, service in enumerate(self.services):
            if described.get(service.name):
                raise ValueError(
                    f"services[{index}].name: {service.name!r} is the name of a folder that {service.name} has for "
                    "itself; choose another name"
                )
        return self

    @property
    def ports(self) -> set[int]:
        """TCP ports that moehost's own programs listen on."""
        found = {service.port for service in self.services}
        if self.gateway:
            found.add(self.gateway.port)
        if self.router:
            found.add(self.router.port)
        if self.metrics:
            found |= {self.metrics.port, self.metrics.prometheus_port}
        return found

    @property
    def is_router_only(self) -> bool:
        """Whether it stands before other nodes and serves nothing itself, so that it needs no engine."""
        return self.router is not None and not self.services

    @property
    def has_containers(self) -> bool:
        """Whether a service runs in a container."""
        return any(service.runtime == "container" for service in self.services)

    @property
    def has_container_toolkit(self) -> bool:
        """Whether containers get at the cards."""
        wish = self.nvidia.container_toolkit
        return self.gpu != "off" and (
            self.has_containers or bool(self.nvidia.container_runtimes) if wish is None else wish
        )

    @property
    def local_files(self) -> dict[str, str]:
        """Files on this computer that the settings name, by the key's path."""
        files = {f"services[{n}].api_keys_file": each.api_keys_file for n, each in enumerate(self.services)}
        files |= {"hf_token_file": self.hf_token_file, "calibration_file": self.calibration_file}
        if self.gateway:
            for key in ("certificate_file", "certificate_key_file", "user_keys_file"):
                files[f"gateway.{key}"] = getattr(self.gateway, key)
        if self.router:
            keys = ("node_key_file", "node_ca_file", "certificate_file", "certificate_key_file", "user_keys_file")
            for key in keys:
                files[f"router.{key}"] = getattr(self.router, key)
        if self.notify:
            files["notify.url_file"] = self.notify.url_file
        return {key: path for key, path in files.items() if path is not None}

    @property
    def models(self) -> list[Model]:
        """The models of all services, each once, in order."""
        return list({service.model.name: service.model for service in self.services}.values())


def layers(text: str) -> tuple[int, ...]:
    """The numbers in e.g. `0-12,47`; empty text names none. Raises ValueError for anything else."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        bounds = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if not bounds or int(bounds[2] or bounds[1]) < int(bounds[1]):
            raise ValueError(f"{text!r}: write layers as 0-12,47")
        found += range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
    return tuple(found)


def read(data: Mapping[str, Any]) -> Node:
    """The settings of one host.

    `data` is the host's inventory data; pyinfra's own keys and keys that start with `x_` are left out.
    Raises SettingsError with a line for each wrong value.
    """
    ours = {key: value for key, value in data.items() if not PYINFRA_KEYS.match(key) and not key.startswith("x_")}
    try:
        return Node.model_validate(ours)
    except ValidationError as error:
        raise SettingsError(list(mistakes.lines(error, Node))) from None
