"""Clients of the router that check every answer to its end: 50 at once, if need be."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST, PORT = "llm.home.arpa", 8443


class WrongError(RuntimeError):
    """What is wrong with an answer."""


@dataclass(frozen=True)
class Answer:
    """What came back, and from which node's server (a name that it has of its process, None where it says none)."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def code(self) -> str:
        """The code of an error in OpenAI's form."""
        return str(json.loads(self.body)["error"]["code"])


@dataclass
class Client:
    """A user of the router.

    + address: the router's
    + ca: file with the certificate of its authority
    """

    address: str
    ca: Path
    key: str
    context: ssl.SSLContext = field(init=False)

    def __post_init__(self) -> None:
        self.context = ssl.create_default_context(cafile=str(self.ca))

    def connect(self, timeout_s: float = 300) -> http.client.HTTPSConnection:
        """A new connection to the router."""
        connection = http.client.HTTPSConnection(HOST, PORT, context=self.context, timeout=timeout_s)
        raw = socket.create_connection((self.address, PORT), timeout=timeout_s)
        connection.sock = self.context.wrap_socket(raw, server_hostname=HOST)
        return connection

    def ask(self, path: str, body: Any = None, key: str | None = None, **headers: str) -> Answer:
        """One request."""
        connection = self.connect()
        try:
            sent = {"Authorization": f"Bearer {self.key if key is None else key}", **headers}
            text = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, text, sent)
            answer = connection.getresponse()
            return Answer(
                answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
            )
        finally:
            connection.close()

    def chat(self, text: str, tokens: int = 4, key: str | None = None, **more: Any) -> Answer:
        """A short chat."""
        return self.ask("/v1/chat/completions", _body(text, tokens, **more), key)

    def stream(self, text: str, tokens: int, heard: threading.Event | None = None) -> None:
        """A chat that is streamed; raises WrongError unless it comes to its end, with so many tokens.

        + heard: is set when the first piece has come
        """
        connection = self.connect()
        try:
            asked = {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
            headers = {"Authorization": f"Bearer {self.key}"}
            connection.request("POST", "/v1/chat/completions", json.dumps(_body(text, tokens, **asked)), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise WrongError(f"status {answer.status}: {answer.read(300)!r}")
            said, counted = "", None
            while line := answer.readline():
                if line.startswith(b"data: "):
                    said = line[6:].decode().strip()
                    if heard:
                        heard.set()
                    if said != "[DONE]":
                        counted = (json.loads(said).get("usage") or {}).get("completion_tokens", counted)
            if said != "[DONE]" or counted != tokens:
                raise WrongError(f"ended with {said[:80]!r} after {counted} of {tokens} tokens")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise WrongError(f"broke off: {error!r}") from None
        finally:
            connection.close()


def _body(text: str, tokens: int, **more: Any) -> dict[str, Any]:
    # As OpenAI's own client writes it: the model comes last.
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, **more, "model": "tiny"}


class Crowd:
    """So many clients that stream one answer after the other until they are told to stop."""

    def __init__(self, client: Client, count: int, tokens: int) -> None:
        self._client, self._tokens, self._stop = client, tokens, threading.Event()
        # Conversations that nobody has had before.
        self._name = uuid.uuid4()
        self.whole, self.wrong, self.longest_s = 0, Counter[str](), 0.0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._go, args=(number,), daemon=True) for number in range(count)]
        for each in self._threads:
            each.start()

    def _go(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn, began_s, why = turn + 1, time.monotonic(), ""
            try:
                self._client.stream(f"{self._name}: client {number}, question {turn}", self._tokens)
            except WrongError as error:
                why = str(error)
            with self._lock:
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)
                if why:
                    self.wrong[why] += 1
                else:
                    self.whole += 1

    def stop(self) -> None:
        """Let each one come to the end of its answer."""
        self._stop.set()
        for each in self._threads:
            each.join(600)
            assert not each.is_alive()
