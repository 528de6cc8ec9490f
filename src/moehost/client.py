"""Asks a server for completions and takes the time: llama-server's own API, or the one of OpenAI.

Standard library only: nodes run it, too.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

TIMEOUT_S = 30.0


class ClientError(RuntimeError):
    """Why a server gives no answer; one line."""


def first_key(text: str) -> str | None:
    """The key that a file of keys begins with; an owner's may have comments, and None is in an empty one."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), None)


@dataclass(frozen=True)
class Timings:
    """Tokens and seconds of an answer, with the names that `runs.Run` has for them."""

    prompt_n: int
    prompt_s: float
    predicted_n: int
    decode_s: float
    draft_n: int
    draft_accepted: int
    clock: Literal["server", "client"]


@dataclass(frozen=True)
class Answer:
    """An answer: its timings, when each piece of it arrived after the request, and how much was cached."""

    timings: Timings
    arrived_s: tuple[float, ...]
    cached_n: int


class Client:
    """One server. Finds out which API it speaks; raises ClientError where it can't be asked.

    + has_tokens: whether it makes tokens of a text, and takes them
    + context: tokens that a request may have; None where it does not say
    + about: what it says of itself
    """

    def __init__(self, url: str, key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(f"{url!r} is no address; write e.g. http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._tls, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        props = self._ask("GET", "/props", missing_is_none=True)
        self.has_tokens = isinstance(props, dict) and "default_generation_settings" in props
        self.context: int | None = None
        self.model = ""
        self.about: dict[str, Any]
        models = self._ask("GET", "/v1/models", missing_is_none=True)
        first = (models or {}).get("data", [{}])[0] if isinstance(models, dict) else {}
        if isinstance(props, dict) and self.has_tokens:
            self.context = int(props["default_generation_settings"]["n_ctx"])
            named = props.get("model_path") or props.get("model_alias") or first.get("id", "")
            self.about = {"api": "llama-server", "model": {"name": str(named).rpartition("/")[2]}}
            if build := props.get("build_info"):
                self.about["build"] = str(build)
        elif first.get("id"):
            self.model = str(first["id"])
            self.context = first.get("max_model_len")
            self.about = {"api": "OpenAI", "model": {"name": self.model.rpartition("/")[2]}}
        else:
            raise ClientError(f"{self.url} speaks neither llama-server's API nor OpenAI's (/props, /v1/models)")

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text."""
        found = self._ask("POST", "/tokenize", {"content": text})
        return [int(each) for each in found["tokens"]]

    def characters(self, text: str) -> float | None:
        """Characters of a token of this text, as the server counts them; None where it does not say."""
        usage = self._ask("POST", "/v1/completions", {"model": self.model, "prompt": text, "max_tokens": 1})
        tokens = (usage.get("usage") or {}).get("prompt_tokens")
        return len(text) / tokens if tokens else None

    def complete(self, prompt: list[int] | str, tokens: int, timeout_s: float) -> Answer:
        """One answer of so many tokens, nothing of the prompt cached; raises ClientError, also after `timeout_s`."""
        # No stop words, no end before its time, and always the same draw.
        body: dict[str, Any] = {"prompt": prompt, "stream": True, "ignore_eos": True, "seed": 1, "stop": []}
        if self.has_tokens:
            path = "/completion"
            body |= {"n_predict": tokens, "cache_prompt": False}
        else:
            path = "/v1/completions"
            body |= {"model": self.model, "max_tokens": tokens, "stream_options": {"include_usage": True}}
        arrived: list[float] = []
        usage: dict[str, Any] = {}
        timings: dict[str, Any] = {}
        started = time.monotonic()
        for event in self._events(path, body, timeout_s):
            now = time.monotonic() - started
            if "error" in event:
                raise ClientError(_said(event["error"]))
            timings, usage = event.get("timings") or timings, event.get("usage") or usage
            text = event.get("content") or "".join(each.get("text") or "" for each in event.get("choices") or [])
            # A token may be a part of a character, and its text empty: then its number tells.
            if text or event.get("tokens"):
                arrived.append(now)
            if now > timeout_s:
                raise ClientError(f"no whole answer within {timeout_s:.0f} s")
        if not arrived:
            raise ClientError("the answer has no token")
        details = usage.get("prompt_tokens_details") or {}
        cached_n = int(timings.get("cache_n") or details.get("cached_tokens") or 0)
        return Answer(_timings(timings, usage, arrived), tuple(arrived), cached_n)

    def _ask(self, method: str, path: str, body: Any = None, missing_is_none: bool = False) -> Any:
        connection = self._connection(TIMEOUT_S)
        try:
            response = self._sent(connection, method, path, body)
            text = response.read()
            if missing_is_none and response.status in (404, 405, 501):
                return None
            self._require_success(response.status, text)
            return json.loads(text)
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url} does not answer: {error}") from None
        except ValueError:
            if missing_is_none:
                return None
            raise ClientError(f"{self.url}{path} answers no JSON: {text[:80]!r}") from None
        finally:
            connection.close()

    def _events(self, path: str, body: Any, timeout_s: float) -> Iterator[dict[str, Any]]:
        """The pieces of a streamed answer, as they arrive."""
        connection = self._connection(timeout_s)
        try:
            response = self._sent(connection, "POST", path, body)
            if response.status != 200:
                self._require_success(response.status, response.read())
            for line in response:
                name, _, data = line.strip().partition(b":")
                if name in (b"data", b"error") and data.strip() != b"[DONE]":
                    event = json.loads(data)
                    yield event if name == b"data" else {"error": event}
        except TimeoutError:
            raise ClientError(f"nothing for {timeout_s:.0f} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ClientError(f"the answer broke off: {error}") from None
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout_s)

    def _sent(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        text = None if body is None else json.dumps(body).encode()
        connection.request(method, self._path + path, text, self._headers)
        return connection.getresponse()

    def _require_success(self, status: int, text: bytes) -> None:
        if status in (401, 403):
            raise ClientError(f"{self.url} refuses the key (HTTP status {status}); give one with --api-key-file")
        if status != 200:
            try:
                said = _said(json.loads(text)["error"])
            except (ValueError, KeyError, TypeError):
                said = text[:200].decode(errors="replace").strip()
            raise ClientError(f"HTTP status {status}: {said}")


def _said(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _timings(timings: dict[str, Any], usage: dict[str, Any], arrived: list[float]) -> Timings:
    """What the server has timed, else what was seen from here."""
    if "prompt_ms" in timings and "predicted_ms" in timings:
        return Timings(
            prompt_n=int(timings["prompt_n"]),
            prompt_s=timings["prompt_ms"] / 1e3,
            predicted_n=int(timings["predicted_n"]),
            decode_s=timings["predicted_ms"] / 1e3,
            draft_n=int(timings.get("draft_n") or 0),
            draft_accepted=int(timings.get("draft_n_accepted") or 0),
            clock="server",
        )
    return Timings(
        prompt_n=int(usage.get("prompt_tokens") or 0),
        prompt_s=arrived[0],
        predicted_n=int(usage.get("completion_tokens") or len(arrived)),
        decode_s=arrived[-1] - arrived[0],
        draft_n=0,
        draft_accepted=0,
        clock="client",
    )
