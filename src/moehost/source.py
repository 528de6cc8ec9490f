"""Where a model comes from: sources parsed, split sets named, the hub's addresses and answers understood.

Pure and standard library only: the controller checks settings with it, the node's `moehost.fetch` follows it.
Every error is a ValueError of one line that says what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from moehost import gguf

HUB_ENDPOINT = "https://huggingface.co"

# Names get into unit files, command lines and aria2's input: they hold nothing that any of them interprets.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMS = "file:///PATH.gguf, file:PATH.gguf, https://HOST/PATH.gguf or hf://OWNER/REPO/PATH@COMMIT"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model; sha256 is None until somebody has stated or computed it."""

    name: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class FileSource:
    """Files in a folder; a relative folder is one of the controller, whose files are uploaded first."""

    folder: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HttpSource:
    """Files side by side under one address."""

    base_url: str
    names: tuple[str, ...]

    def url(self, name: str) -> str:
        """The address of one of the files."""
        return f"{self.base_url}/{quote(name)}"


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of a Hugging Face repository at one commit; no names stand for the one model its folder holds."""

    owner: str
    repo: str
    revision: str
    folder: str
    names: tuple[str, ...]

    def tree_url(self, endpoint: str) -> str:
        """The address that lists the source's folder, with sizes and sha256."""
        folder = f"/{quote(self.folder)}" if self.folder else ""
        return f"{endpoint.rstrip('/')}/api/models/{self.owner}/{self.repo}/tree/{self.revision}{folder}"

    def resolve_url(self, endpoint: str, name: str) -> str:
        """The address that leads to the bytes of one file, usually by a redirect to a signed one."""
        path = quote(f"{self.folder}/{name}" if self.folder else name)
        return f"{endpoint.rstrip('/')}/{self.owner}/{self.repo}/resolve/{self.revision}/{path}"


Source = FileSource | HttpSource | HubSource


def parse(source: str, revision: str | None = None) -> Source:
    """Understands a source as an owner writes it; naming any shard of a split set names the whole set.

    + source: one of the forms in `_FORMS`; hf paths may name a folder that holds exactly one model
    + revision: the commit of an hf source that does not end in @COMMIT itself
    """
    scheme, _, rest = source.partition(":")
    if scheme == "hf" and rest.startswith("//"):
        return _hub(source, rest[2:], revision)
    if revision is not None:
        raise ValueError(f"source {source!r}: only hf:// sources have a revision; remove {revision!r}")
    if scheme == "file":
        return _file(source, rest)
    if scheme in ("https", "http"):
        return _http(source)
    raise ValueError(f"source {source!r}: is none of the known forms; write {_FORMS}")


def _file(source: str, rest: str) -> FileSource:
    path = rest.removeprefix("//") if rest.startswith("///") else rest
    if path.startswith("//"):
        raise ValueError(f"source {source!r}: names a host; write file:///PATH with three slashes")
    folder, slash, name = path.rpartition("/")
    return FileSource(folder or slash or ".", _set_names(source, name))


def _http(source: str) -> HttpSource:
    require_safe(source)
    parts = urlsplit(source)
    if parts.query or parts.fragment:
        # A signed address expires, and the manifest would keep its signature.
        raise ValueError(f"source {source.partition('?')[0]!r}: has a query or fragment; write the plain address")
    base, _, name = source.rpartition("/")
    return HttpSource(base, _set_names(source, unquote(name)))


def _hub(source: str, rest: str, revision: str | None) -> HubSource:
    path, at, tail = rest.rpartition("@")
    if not at or tail.endswith(".gguf"):
        path, tail = rest, revision or ""
    commit = tail.lower()
    if revision is not None and revision.lower() != commit:
        raise ValueError(f"source {source!r}: disagrees with revision {revision!r}; give the commit in one place")
    if not _COMMIT.fullmatch(commit):
        found = f"revision {tail!r} is no full commit hash" if tail else "has no revision"
        raise ValueError(f"source {source!r}: {found}; pin the commit's 40 hex digits, as branches and tags can move")
    pieces = path.rstrip("/").split("/")
    for piece in pieces:
        if not re.fullmatch(r"[\w.+ ()-]+", piece) or piece in (".", ".."):
            raise ValueError(f"source {source!r}: {piece!r} is no part of a path on the hub; write {_FORMS}")
    if len(pieces) < 2 or not all(_NAME.fullmatch(piece) for piece in pieces[:2]):
        raise ValueError(f"source {source!r}: names no repository; write {_FORMS}")
    owner, repo, *inside = pieces
    names: tuple[str, ...] = ()
    if inside and inside[-1].endswith(".gguf"):
        names = _set_names(source, inside.pop())
    return HubSource(owner, repo, commit, "/".join(inside), names)


def _set_names(source: str, name: str) -> tuple[str, ...]:
    if not name.endswith(".gguf"):
        raise ValueError(f"source {source!r}: does not end in the name of a .gguf file; name one, any shard will do")
    return tuple(gguf.split_names(_plain(source, name)))


def _plain(where: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: file name {name!r} has more than letters, digits and ._+-; rename the file")
    return name


def model_name(name: str) -> str:
    """The same name if it can be a folder in the store."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"model name {name!r}: use letters, digits, _ and, after the first, .+-")
    return name


def require_safe(url: str) -> str:
    """The same address if it is https without credentials; plain http is for this machine itself."""
    shown = url.partition("?")[0]  # the query of a signed address is a secret
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"address {shown!r}: {error}; write https://HOST/PATH") from None
    if not host or re.search(r"[\s\x00-\x20\x7f]", url):
        raise ValueError(f"address {shown!r}: is not whole; write https://HOST/PATH without spaces")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"address of {host}: holds a user or password, which would be shown; remove it")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError(f"address {shown!r}: is not encrypted; write https:// (http:// is for loopback only)")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_sha256(source: Source, sha256: Mapping[str, str]) -> None:
    """Raises if the stated checksums do not fit the source, as far as that shows without asking anybody.

    An https source needs one for every file: nothing else says that the bytes are the right ones.
    """
    for name, value in sha256.items():
        if not _SHA256.fullmatch(str(value)):
            raise ValueError(f"sha256 of {name!r}: {value!r} is not 64 lower-case hex digits; copy it from sha256sum")
    if source.names:
        _refuse_strangers(source.names, sha256)
    missing = [name for name in source.names if name not in sha256]
    if missing and isinstance(source, HttpSource):
        raise ValueError(
            f"source {source.base_url}/: no sha256 for {missing[0]}{_others(missing)}; an https source needs "
            f"one for each file, write sha256 = {{{missing[0]!r}: '<64 hex digits from the publisher>'}}"
        )


def _refuse_strangers(names: Sequence[str], sha256: Mapping[str, str]) -> None:
    strangers = sorted(sha256.keys() - set(names))
    if strangers:
        raise ValueError(f"sha256 of {strangers[0]!r}: the model has no such file; it has {names[0]}{_others(names)}")


def _others(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def pin(files: Sequence[ModelFile], sha256: Mapping[str, str]) -> tuple[ModelFile, ...]:
    """The files with the owner's checksums; raises where those contradict what the source itself says."""
    _refuse_strangers([file.name for file in files], sha256)
    for file in files:
        stated = sha256.get(file.name)
        if stated and file.sha256 and stated != file.sha256:
            raise ValueError(
                f"sha256 of {file.name!r}: {stated} is asked for, the source has {file.sha256}; correct the "
                f"checksum or the revision"
            )
    return tuple(replace(file, sha256=sha256.get(file.name, file.sha256)) for file in files)


def hub_files(source: HubSource, entries: Iterable[Any]) -> tuple[ModelFile, ...]:
    """The model's files in the hub's list of its folder, in the order of the shards.

    Raises if one is missing, or if a source without a file name leaves a choice between models.
    """
    where = f"hf://{source.owner}/{source.repo}/{source.folder}@{source.revision[:8]}"
    listed: dict[str, ModelFile] = {}
    try:
        for entry in entries:
            folder, _, name = entry["path"].rpartition("/")
            if folder == source.folder and name.endswith(".gguf"):
                lfs = entry.get("lfs") or {}
                sha256 = lfs.get("oid")
                if sha256 is not None and not _SHA256.fullmatch(sha256):
                    raise ValueError(f"{sha256!r} is no sha256")
                listed[name] = ModelFile(name, int(lfs.get("size", entry["size"])), sha256)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: the hub's list of files is not understood ({error!r}); is it a hub?") from None
    names = source.names
    if not names:
        models = sorted({gguf.split_names(_plain(where, name))[0] for name in listed})
        if len(models) != 1:
            found = f"holds {len(models)} models ({', '.join(models[:5])})" if models else "holds no .gguf file"
            raise ValueError(f"{where}: the folder {found}; name one file in the source")
        names = tuple(gguf.split_names(models[0]))
    missing = [name for name in names if name not in listed]
    if missing:
        raise ValueError(
            f"{where}: the folder lacks {missing[0]}{_others(missing)}; correct the path or the revision"
        )
    return tuple(listed[name] for name in names)
