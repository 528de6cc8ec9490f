"""How a model comes into the store."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FileUploadCommand, FunctionCommand, QuoteString, StringCommand, operation

from moehost import confined, source
from moehost.confined import FETCHER
from moehost.files import sha256_of
from moehost.job import Job
from moehost.settings import Model, Node
from roles.facts import FileStates
from roles.models.facts import Fetch, GoodFiles, StoredModel, Strangers, own
from roles.models.verification import LIBRARY
from roles.operations import last_words, refuse, unit_options

TOKEN = "/etc/moehost/hub-token"  # noqa: S105  (a path)
GIB = 1 << 30


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
    def origin(self) -> confined.Origin:
        """Where the program on the node finds it."""
        if not isinstance(self.source, source.FileSource):
            return "network"
        return "store" if self.uploads else "node"

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
def owned(store: str) -> Iterator[StringCommand]:
    """
    Have what is moehost's in the store belong to the account that fetches; files with other names stay their owners'.

    + store: the model store
    """
    if not host.get_fact(Strangers, store=store):
        host.noop(f"what is moehost's in {store} is {FETCHER}'s")
        return
    yield _handed_over(store)


def _handed_over(store: str) -> StringCommand:
    # From inside of each folder, and never to where a link leads: the store is no longer root's.
    others = f"\\( ! -user {FETCHER} -o ! -group {FETCHER} \\)"
    return own(store, f"{others} -execdir chown --no-dereference {FETCHER}:{FETCHER} {{}} +")


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
        yield StringCommand("systemctl stop", QuoteString(order.unit), "2>/dev/null; true")
        yield _handed_over(node.models_dir)
        yield from _upload(order)
        if order.origin == "node":
            yield _linked(order)
        yield from _start(order)
    yield FunctionCommand(_watch, (order,), {})
    # An older version's fetch, which was left to finish, has written as root.
    yield _handed_over(node.models_dir)


def _upload(order: Order) -> Iterator[Any]:
    targets = {path: f"{order.incoming}.upload/{path.name}" for path in order.uploads}
    if not targets:
        return
    there = host.get_fact(FileStates, paths=list(targets.values()))
    good = host.get_fact(GoodFiles, folder=order.folder)
    yield _folder(f"{order.incoming}.upload")
    for path, target in targets.items():
        if there.get(target, [""])[0] == order.sha256[path.name]:
            pass
        elif good.get(path.name) == order.sha256[path.name]:
            # Of a model that is damaged only the damaged files are sent again; what is linked is verified, too.
            yield StringCommand("ln -fT", QuoteString(f"{order.folder}/{path.name}"), QuoteString(target))
        else:
            # A link that the account has left there would lead elsewhere.
            yield StringCommand("rm -f", QuoteString(target))
            yield FileUploadCommand(str(path), target, remote_temp_filename=host.get_temp_filename(target))
            yield StringCommand("chmod 644", QuoteString(target))
        yield StringCommand("chown --no-dereference", f"{FETCHER}:{FETCHER}", QuoteString(target))


def _linked(order: Order) -> StringCommand:
    """Give the files a second name in the store where they are on its disk; else the fetch copies them.

    Only root gives names to what belongs to others, and only outside of a sandbox are both folders in one mount.
    """
    folder, found = QuoteString(f"{order.incoming}.links"), order.source
    assert isinstance(found, source.FileSource)  # noqa: S101  (for the type checker)
    words = (QuoteString(f"{found.folder}/{each}") for each in found.names)
    return StringCommand(
        _folder(order.incoming), "&& rm -rf", folder, "&& mkdir", folder, "&& for each in", *words, "; do",
        "ln -L \"$each\"", folder, "2>/dev/null; done;", f"chown --no-dereference {FETCHER}:{FETCHER}", folder,
    )  # fmt: skip


def _folder(path: str) -> StringCommand:
    """Make a folder with the rights of the account: what it has put in its place leads root nowhere."""
    return StringCommand(f"runuser -u {FETCHER} -- mkdir -p", QuoteString(path))


def _start(order: Order) -> Iterator[StringCommand]:
    fact = order.fact()
    yield _folder(order.incoming)
    yield StringCommand(
        f"runuser -u {FETCHER} -- sh -c 'rm -f \"$0\"; cat >\"$1\"'",
        QuoteString(fact["progress"]), QuoteString(fact["job"]),
        _stdin=order.job.to_json(),
    )  # fmt: skip
    properties = confined.fetch(order.node.models_dir, order.origin)
    if order.node.hf_token_file:
        properties.append(f"LoadCredential=hub-token:{TOKEN}")
    yield StringCommand(
        "systemd-run --quiet --collect", *unit_options(properties), QuoteString(f"--unit={order.unit}"),
        f"--setenv=PYTHONPATH={LIBRARY} --setenv=PYTHONDONTWRITEBYTECODE=1",
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
    words = " / ".join(last_words(host, f"--unit {shlex.quote(order.unit)}", 5))
    reason = progress.get("error") or words or "its unit ended without a word"
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
