"""How a model comes into the store."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FileUploadCommand, FunctionCommand, QuoteString, StringCommand, operation

from moehost import source
from moehost.files import sha256_of
from moehost.job import Job
from moehost.settings import Model, Node
from roles.facts import FileStates
from roles.models.facts import Fetch, GoodFiles, StoredModel
from roles.models.verification import LIBRARY
from roles.operations import refuse

TOKEN = "/etc/moehost/hub-token"  # noqa: S105  (a path)
GIB = 1 << 30

# The fetch reads what strangers send: it may write the store, and nothing else. It is root within these limits so
# that models which belong to others can be linked instead of copied, and so that no service can write the store.
SANDBOX = [
    "CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "RestrictNamespaces=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "SystemCallFilter=@system-service",
    # The model that serves just now comes first.
    "Nice=10",
    "OOMScoreAdjust=500",
]


@dataclass(frozen=True)
class Order:
    """A model, as the program on the node wants it told."""

    node: Node
    model: Model

    @cached_property
    def source(self) -> source.Source:
        """Where the model comes from."""
        return source.parse(self.model.source, self.model.revision)

    @cached_property
    def uploads(self) -> list[Path]:
        """The files on this computer that go to the node first; none for any other source."""
        if isinstance(self.source, source.FileSource) and not self.source.folder.startswith("/"):
            return [Path(self.source.folder, name) for name in self.source.names]
        return []

    @cached_property
    def sha256(self) -> dict[str, str]:
        """The checksums that are known beforehand, by file name."""
        return {path.name: sha256_of(path) for path in self.uploads} | self.model.sha256

    @property
    def folder(self) -> str:
        """Where the model stands in the end."""
        return f"{self.node.models_dir}/{self.model.name}"

    @property
    def incoming(self) -> str:
        """Beginning of the paths that serve the way there."""
        return f"{self.node.models_dir}/.incoming/{self.model.name}"

    @property
    def unit(self) -> str:
        """Name of the transient unit that brings it."""
        return f"moehost-fetch-{self.model.name}.service"

    @property
    def job(self) -> Job:
        """What `moehost.fetch` is asked for."""
        uploaded = f"file://{self.incoming}.upload/{self.uploads[0].name}" if self.uploads else None
        return Job(
            model=self.model.name,
            store=self.node.models_dir,
            source=uploaded or self.model.source,
            revision=self.model.revision,
            sha256=self.sha256,
            endpoint=self.node.hf_endpoint,
            token_file=f"/run/credentials/{self.unit}/hub-token" if self.node.hf_token_file else None,
            connections=self.node.download_connections,
            reserve_mib=self.node.free_space_reserve_mib,
            uploaded=bool(uploaded),
            recorded_source=self.model.source if uploaded else None,
        )

    def fact(self) -> dict[str, str]:
        """Arguments of the fact `Fetch`."""
        return {
            "unit": self.unit,
            "job": f"{self.incoming}.job.json",
            "progress": f"{self.incoming}/progress.json",
        }


@operation()
def stored(node: Node, model: Model) -> Iterator[Any]:
    """
    Have a model in the store, whole and verified.

    The node fetches it in a unit of its own, which goes on when the deploy is cut off; the next deploy watches it.

    + node: the settings of the node
    + model: the model
    """
    order = Order(node, model)
    if missing := [path for path in order.uploads if not path.is_file()]:
        yield refuse(f"model {model.name}: {missing[0]} is not on this computer; make it or correct the source")
        return
    manifest = host.get_fact(StoredModel, folder=order.folder)
    if manifest and manifest.answers(model.source, model.revision, order.sha256):
        host.noop(f"{model.name} is in the store")
        return

    fetch = host.get_fact(Fetch, **order.fact())
    if not (fetch.get("active") and fetch["job"] == asdict(order.job)):
        yield from _upload(order)
        yield from _start(order)
    yield FunctionCommand(_watch, (order,), {})


def _upload(order: Order) -> Iterator[Any]:
    folder = f"{order.incoming}.upload"
    targets = {path: f"{folder}/{path.name}" for path in order.uploads}
    if not targets:
        return
    there = host.get_fact(FileStates, paths=list(targets.values()))
    good = host.get_fact(GoodFiles, folder=order.folder)
    yield StringCommand("mkdir", "-p", QuoteString(folder))
    for path, target in targets.items():
        if there.get(target, [""])[0] == order.sha256[path.name]:
            continue
        if good.get(path.name) == order.sha256[path.name]:
            # Of a model that is damaged only the damaged files are sent again; what is linked is verified, too.
            yield StringCommand("ln -f", QuoteString(f"{order.folder}/{path.name}"), QuoteString(target))
        else:
            yield FileUploadCommand(str(path), target, remote_temp_filename=host.get_temp_filename(target))
            yield StringCommand("chmod 644", QuoteString(target))


def _start(order: Order) -> Iterator[StringCommand]:
    fact = order.fact()
    yield StringCommand("mkdir", "-p", QuoteString(order.incoming))
    yield StringCommand(
        "systemctl stop", QuoteString(order.unit), "2>/dev/null; rm -f", QuoteString(fact["progress"]),
        "; cat >", QuoteString(fact["job"]),
        _stdin=order.job.to_json(),
    )  # fmt: skip
    properties = [*SANDBOX, f"ReadWritePaths={order.node.models_dir}"]
    if order.node.hf_token_file:
        properties.append(f"LoadCredential=hub-token:{TOKEN}")
    options = [f"--property={each}" for each in properties]
    options += [f"--unit={order.unit}", f"--setenv=PYTHONPATH={LIBRARY}", "--setenv=PYTHONDONTWRITEBYTECODE=1"]
    yield StringCommand(
        "systemd-run --quiet --collect", *(QuoteString(option) for option in options),
        "python3 -m moehost.fetch", QuoteString(fact["job"]),
    )  # fmt: skip


def _watch(state: Any, host: Any, order: Order) -> bool:
    """Follow a fetch to its end, with a line whenever there is something new; False with the reason if it fails."""
    said, started = "", time.monotonic()
    while True:
        fetch = host.get_fact(Fetch, **order.fact())
        progress = fetch["progress"]
        line = _describe(order.model.name, progress)
        if line != said and (not said or time.monotonic() - started > 5 or not fetch["active"]):
            host.log(line, logger.info)
            said, started = line, time.monotonic()
        if not fetch["active"]:
            break
        time.sleep(0.5)
    manifest = host.get_fact(StoredModel, folder=order.folder)
    if manifest and manifest.answers(order.model.source, order.model.revision, order.sha256):
        return True
    _, journal = host.run_shell_command(
        StringCommand("journalctl --no-pager --output cat --lines 5 --unit", QuoteString(order.unit))
    )
    reason = progress.get("error") or " / ".join(journal.stdout_lines) or "its unit ended without a word"
    host.log_styled(f"model {order.model.name}: {reason}", fg="red", log_func=logger.error)
    return False


def _describe(name: str, progress: dict[str, Any]) -> str:
    done, total = progress.get("done_bytes") or 0, progress.get("total_bytes") or 0
    line = f"{name}: {progress.get('phase', 'starting')}"
    if total:
        line += f" {done / GIB:.2f} of {total / GIB:.2f} GiB ({100 * done // total} %)"
    if progress.get("rate_bytes_s") and progress.get("eta_s"):
        line += f", {progress['rate_bytes_s'] / 1e6:.0f} MB/s, {progress['eta_s'] / 60:.0f} min left"
    return line
