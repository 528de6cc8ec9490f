"""Reads GGUF headers over HTTP by ranges, so that a model can be planned before it is downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from moehost.gguf import GgufError, GgufSet, Header, join, read_header, split_names
from moehost.source import require_safe

FIRST_WINDOW_BYTES = 1 << 20  # enough for every shard but the first, which also carries the vocabulary
LAST_WINDOW_BYTES = 16 << 20
TIMEOUT_S = 30.0

_CONTENT_RANGE = re.compile(r"bytes (?P<first>[0-9]+)-[0-9]+/(?P<total>[0-9]+)")
_MENDS = {401: "give a token that may read it", 403: "give a token that may read it"}

Opener = Callable[..., Any]


class _Ranges:
    """A forward-only stream over one remote file, fetched in windows that double up to 16 MiB."""

    def __init__(self, url: str, name: str, token: str | None, opener: Opener, window_bytes: int) -> None:
        self._url, self._name, self._token, self._open = url, name, token, opener
        self._window = window_bytes
        self._next, self._held = 0, b""
        self._whole: BinaryIO | None = None  # set when the server answers a range with the whole file
        self.size_bytes = 0
        self._fetch()

    def _fetch(self) -> None:
        wanted = {"Range": f"bytes={self._next}-{self._next + self._window - 1}"}
        request = Request(self._url, headers=wanted)  # noqa: S310 - read_url lets only safe addresses through
        if self._token:
            # A hub redirects to a content server that must not see the token.
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        response = self._open(request, timeout=TIMEOUT_S)
        length = response.headers.get("Content-Length", "")
        if response.status == 200 and self._next == 0 and length.isdecimal():
            self._whole, self.size_bytes = response, int(length)
            return
        with response:
            self._held = response.read(self._window)
        part = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if part is None or int(part["first"]) != self._next or not self._held:
            raise GgufError(f"{self._name}: its server answers ranges wrongly; download the file first")
        if self.size_bytes not in (0, int(part["total"])):
            raise GgufError(f"{self._name}: changed while it was read; try again")
        self.size_bytes = int(part["total"])
        self._next += len(self._held)
        self._window = max(self._window, min(2 * self._window, LAST_WINDOW_BYTES))

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, none at the end; a window is used up before the next one is fetched."""
        if self._whole is not None:
            return self._whole.read(count)
        if not self._held and self._next < self.size_bytes:
            self._fetch()
        part, self._held = self._held[:count], self._held[count:]
        return part

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()


@contextmanager
def _opened(url: str, name: str, token: str | None, opener: Opener, window_bytes: int) -> Iterator[_Ranges]:
    """One file of the set that `url` names; every fault of the network is a GgufError."""
    query = urlsplit(require_safe(url)).query
    try:
        with closing(_Ranges(f"{name}?{query}" if query else name, name, token, opener, window_bytes)) as stream:
            yield stream
    except (OSError, HTTPException) as error:
        mend = _MENDS.get(getattr(error, "code", 0), "check its host, path and revision")
        raise GgufError(f"{name}: cannot be fetched ({error}); {mend}") from error


def read_url(url: str, token: str | None = None, opener: Opener = urlopen) -> GgufSet:
    """Reads the headers of one remote model, all shards of its set included, and none of its weights.

    A server that ignores ranges is read until the header ends. `token` is sent to the first host only.
    Raises ValueError for an address that is not safe, else GgufError for a refused request and every fault that
    `read_header` names.
    """
    headers: list[Header] = []
    for name in split_names(url.partition("?")[0]):
        with _opened(url, name, token, opener, FIRST_WINDOW_BYTES) as stream:
            headers.append(read_header(cast(BinaryIO, stream), stream.size_bytes, name))
    return join(headers)


def read_heads(url: str, found: GgufSet, token: str | None = None, opener: Opener = urlopen) -> list[bytes]:
    """The bytes of each header that `read_url` has read, up to where its data part begins: one request for each.

    Raises ValueError and GgufError as `read_url` does, and for a file that is not as long as it was.
    """
    heads = []
    for header in found.headers:
        with _opened(url, header.name, token, opener, header.data_offset) as stream:
            head = bytearray()
            while (lacking := header.data_offset - len(head)) and (part := stream.read(lacking)):
                head += part
            if lacking or stream.size_bytes != header.file_size_bytes:
                raise GgufError(f"{header.name}: changed since it was planned; try again")
        heads.append(bytes(head))
    return heads
