"""Brings bytes over the network: asks hosts and hubs with urllib, fetches files with aria2.

A token goes only to the hub it was made for, and only from this module's own requests, which follow redirects
by hand. aria2 would repeat a header wherever it is redirected to, so it never gets one: it gets the signed
address that the hub redirects to, on its standard input, as everybody on the machine can read arguments.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from moehost.files import control_file, discard, held_bytes
from moehost.source import require_safe
from moehost.store import StoreError

TIMEOUT_S = 30
MAX_REDIRECTS = 8
FRUITLESS_TRIES = 6  # in a row; a try that brought bytes starts the count anew
MAX_PAUSE_S = 30.0

_REDIRECTS = (301, 302, 303, 307, 308)
_SUMMARY = re.compile(r"\[#\w+ (\d+)B/\d+B")
_NEXT_PAGE = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
# aria2's exit statuses that say something; its own messages hold addresses, which may be signed.
_FAILURES = {
    2: "timed out",
    3: "the address was not found",
    6: "the network failed",
    7: "was ended",
    19: "the host name was not found",
    22: "the host refused, or the signed address has expired",
    24: "the host wants a login",
    29: "the host is overloaded",
}
_UNKNOWN_FAILURE = 1
_LOCAL_FAILURES = {
    9: "the disk is full",
    15: "cannot open the file",
    16: "cannot create the file",
    17: "cannot write",
}


class Unreachable(StoreError):
    """A failure that may pass: no connection, or a host that is overloaded or broken for now."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)

Answer = HTTPResponse | urllib.error.HTTPError


def _ask(url: str, token: str | None, headers: dict[str, str] | None = None) -> Answer:
    """Gets the final answer for an address, whatever its status; redirects to another host drop the token.

    Raises Unreachable without an answer, ValueError for a redirect to an unsafe address.
    """
    for _ in range(MAX_REDIRECTS):
        answer = _answer(url, {"User-Agent": "moehost", **(headers or {})}, token)
        if answer.status not in _REDIRECTS or "Location" not in answer.headers:
            return answer
        answer.close()
        following = require_safe(urljoin(url, answer.headers["Location"]))
        if _origin(following) != _origin(url):
            token = None
        url = following
    raise StoreError(f"{_origin(url)}: redirects in a circle; correct the address")


def _answer(url: str, headers: dict[str, str], token: str | None) -> Answer:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  (require_safe allows http and https only)
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        answer: HTTPResponse = _opener.open(request, timeout=TIMEOUT_S)
        return answer
    except urllib.error.HTTPError as error:
        return error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(f"{_origin(url)}: gives no answer ({reason}); check the network and the address") from None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _refusal(answer: Answer, what: str, has_token: bool) -> StoreError:
    status = answer.status or 0
    where = f"{_origin(answer.url)}: answers {status} for {what}"
    if status == 429 or status >= 500:
        return Unreachable(f"{where}; try again later")
    if status in (401, 403):
        mend = "accept its terms with the token's account" if has_token else "set a token if it is private"
        return StoreError(f"{where}; {mend}, or correct the source")
    return StoreError(f"{where}; correct the source or the revision")


def tree(url: str, token: str | None) -> list[Any]:
    """All entries of a hub's list, from as many pages as it has."""
    entries: list[Any] = []
    page: str | None = url
    while page:
        with _ask(page, token) as answer:
            if answer.status != 200:
                raise _refusal(answer, urlsplit(url).path, token is not None)
            try:
                entries.extend(_json_list(answer.read()))
            except (OSError, HTTPException):
                raise Unreachable(f"{_origin(page)}: broke off its list of files; try again") from None
            except ValueError:
                raise StoreError(f"{_origin(page)}: sends no list of files; mend the endpoint") from None
            link = _NEXT_PAGE.search(answer.headers.get("Link", ""))
        page = urljoin(page, link[1]) if link else None
        if page and _origin(page) != _origin(url):
            raise StoreError(f"{_origin(url)}: continues its list on another host; correct the endpoint")
    return entries


def _json_list(text: bytes) -> list[Any]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("no list")
    return found


def locate(url: str, token: str | None) -> tuple[str, int]:
    """Where a file's bytes really are, as an address that needs no token, and how many there are.

    Asks for one byte, because signed addresses often refuse HEAD.
    """
    what = urlsplit(url).path
    with _ask(url, token, {"Range": "bytes=0-0"}) as answer:
        if answer.status not in (200, 206):
            raise _refusal(answer, what, token is not None)
        place, headers = answer.url, answer.headers
    if token is not None and _origin(place) == _origin(url):
        with _ask(place, None, {"Range": "bytes=0-0"}) as answer:
            if answer.status not in (200, 206):
                raise StoreError(
                    f"{_origin(url)}: sends {what} itself and only with the token, which must not leave this "
                    f"program; use a hub that redirects to storage, or fetch the file and use file://"
                )
    size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    if not size.isdigit():
        raise StoreError(f"{_origin(place)}: does not say how long {what} is; use another host")
    return place, int(size)


@dataclass(frozen=True)
class Downloader:
    """Fetches files one after the other, each over several connections.

    + token: for the hub, None for other hosts
    + connections: parallel ranges of one file
    + lock: descriptor that aria2 inherits, so that no other run touches a part before it has ended
    """

    token: str | None
    connections: int
    lock: int

    def fetch(self, url: str, part: Path, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        """Fills a part, going on from where an earlier call or run was interrupted, if that is known.

        Each try resolves the address anew, because signed ones expire; tries that bring bytes cost nothing.
        `on_bytes` hears about once a second how many bytes are there. Raises StoreError or ValueError.
        """
        if not (part.exists() and control_file(part).exists()):
            discard(part)  # without the control file nobody knows which ranges are there
        held, fruitless = held_bytes(part), 0
        while True:
            try:
                status = self._try(url, part, size_bytes, on_bytes)
                if status == 0:
                    return
                reason = f"{_origin(url)}: {_FAILURES.get(status, f'aria2 ended with status {status}')}"
            except Unreachable as error:
                status, reason = None, str(error)
            before, held = held, held_bytes(part)
            fruitless = 0 if held > before else fruitless + 1
            if fruitless >= FRUITLESS_TRIES:
                raise StoreError(f"{part.stem}: {reason}; gave up after {fruitless} tries, run again later")
            if status == _UNKNOWN_FAILURE and fruitless == 2:
                discard(part)  # most likely a power cut has damaged its control file
            time.sleep(min(2.0**fruitless, MAX_PAUSE_S))

    def _try(self, url: str, part: Path, size_bytes: int, on_bytes: Callable[[int], None]) -> int:
        """Resolves the address and runs aria2; returns its exit status, raises for what no try can mend."""
        place, found_bytes = locate(url, self.token)
        if found_bytes != size_bytes:
            raise StoreError(
                f"{_origin(place)}: has {found_bytes} bytes for {part.stem}, not the {size_bytes} announced; "
                f"correct the source or the revision"
            )
        status = self._aria2(place, part, on_bytes)
        if status in _LOCAL_FAILURES:
            raise StoreError(f"{part}: {_LOCAL_FAILURES[status]}; mend it and run again to continue")
        return status

    def _aria2(self, url: str, part: Path, on_bytes: Callable[[int], None]) -> int:
        """Runs aria2 once and returns its exit status."""
        arguments = [
            "aria2c",
            "--no-conf",
            "--no-netrc",
            "--input-file=-",
            f"--dir={part.parent}",
            "--continue=true",
            "--always-resume=false",  # a host without ranges starts again instead of failing
            "--auto-file-renaming=false",
            "--file-allocation=none",  # so that the blocks of an unfinished file tell what is still to come
            f"--split={self.connections}",
            f"--max-connection-per-server={self.connections}",
            "--min-split-size=4M",
            "--disk-cache=64M",
            "--auto-save-interval=1",  # seconds of work that a SIGKILL may cost
            f"--stop-with-process={os.getpid()}",
            f"--timeout={TIMEOUT_S}",
            f"--connect-timeout={TIMEOUT_S}",
            "--max-tries=3",
            "--retry-wait=1",
            "--user-agent=moehost",
            "--summary-interval=1",
            "--human-readable=false",
            "--show-console-readout=false",
            "--download-result=hide",
            "--console-log-level=error",
            "--enable-color=false",
        ]
        try:
            aria2 = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                pass_fds=[self.lock],
            )
        except FileNotFoundError:
            raise StoreError("aria2c: is not installed; install the package aria2") from None
        with aria2:
            assert aria2.stdin is not None and aria2.stdout is not None  # noqa: S101  (for the type checker)
            try:
                with suppress(BrokenPipeError):  # its exit status then says why it ended
                    aria2.stdin.write(f"{url}\n out={part.name}\n")
                    aria2.stdin.close()
                for line in aria2.stdout:
                    if summary := _SUMMARY.match(line):
                        on_bytes(int(summary[1]))
            except BaseException:
                aria2.terminate()
                raise
        return aria2.returncode
