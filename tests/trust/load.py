"""Many clients at once: reads `{url, key, clients, seconds, ca, connect}` on standard input, prints what they met.

Standard library only, since it also runs on the node. A client asks, reads a stream, drops one in the middle,
leaves before an answer has begun, or sends rubbish, again and again. What it prints: how often each of these ended as
it should (`done`), and everything else with the number of times (`unexpected`).
"""

import collections
import contextlib
import http.client
import json
import random
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 240
WORDS = ["the", "model", "reads", "a", "question", "and", "writes", "an", "answer,", "token", "by", "token."]
# How often a client does what.
ACTIONS = {"answer": 5, "stream": 3, "cancelled": 3, "impatient": 1, "rubbish": 1}


class Unexpected(Exception):
    """What should not have come."""


class Clients:
    """All clients of one address."""

    def __init__(self, url: str, key: str, ca: str | None, connect: str | None) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.key = parts.hostname or "", parts.port or 443, key
        self.connect = connect or self.host
        self.tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        self.done: collections.Counter[str] = collections.Counter()
        self.unexpected: collections.Counter[str] = collections.Counter()
        self.longest_s = 0.0
        self.lock = threading.Lock()

    def run(self, count: int, seconds: float) -> None:
        """Have so many clients at work for so long, and wait until the last one is through."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(number, end)) for number in range(count)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    def _client(self, number: int, end: float) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            (action,) = chance.choices(list(ACTIONS), list(ACTIONS.values()))
            started = time.monotonic()
            try:
                getattr(self, action)(chance)
                with self.lock:
                    self.done[action] += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
            except (OSError, http.client.HTTPException, ValueError, Unexpected) as error:
                with self.lock:
                    self.unexpected[f"{action}: {type(error).__name__} {error}"[:160]] += 1

    def answer(self, chance: random.Random) -> None:
        """A whole answer."""
        with self._asked(self._body(chance, chance.randint(1, 24))) as response:
            self._require(response, 200)
            if not json.loads(response.read())["choices"]:
                raise Unexpected("no choice")

    def stream(self, chance: random.Random) -> None:
        """A streamed answer, read to its end."""
        with self._asked(self._body(chance, chance.randint(1, 24), stream=True)) as response:
            self._require(response, 200)
            if b"data: [DONE]" not in response.read():
                raise Unexpected("a stream without its end")

    def cancelled(self, chance: random.Random) -> None:
        """A stream that is dropped after some pieces, in half of the cases without a farewell."""
        with self._asked(self._body(chance, 256, stream=True), reset=chance.random() < 0.5) as response:
            self._require(response, 200)
            for _ in range(chance.randint(1, 8)):
                response.readline()

    def impatient(self, chance: random.Random) -> None:
        """A client that is gone before anything has come back."""
        with self._asked(self._body(chance, 64), wait=False):
            time.sleep(chance.random() / 5)

    def rubbish(self, chance: random.Random) -> None:
        """What is no request: it is refused, and by no crash."""
        body = chance.choice([b"{", b"", b"[]" * 1000, b'{"messages": 7}', b"\xff\xfe", b'{"prompt": null}'])
        with self._asked(body) as response:
            if not 400 <= response.status < 600 or not response.read():
                raise Unexpected(f"status {response.status} for {body[:20]!r}")

    @contextlib.contextmanager
    def _asked(self, body: bytes, wait: bool = True, reset: bool = False) -> Any:
        connection = socket.create_connection((self.connect, self.port), timeout=TIMEOUT_S)
        try:
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_hostname=self.host)
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
                f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            if not wait:
                yield None
                return
            with http.client.HTTPResponse(connection, method="POST") as response:
                response.begin()
                yield response
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            connection.close()

    def _body(self, chance: random.Random, tokens: int, stream: bool = False) -> bytes:
        text = " ".join(chance.choices(WORDS, k=chance.choice([5, 20, 60])))
        message = {"role": "user", "content": text}
        return json.dumps({"messages": [message], "max_tokens": tokens, "stream": stream}).encode()

    def _require(self, response: http.client.HTTPResponse, status: int) -> None:
        if response.status != status:
            raise Unexpected(f"status {response.status}: {response.read(200)!r}")


def main() -> None:
    """As the head of this file says."""
    wish = json.load(sys.stdin)
    clients = Clients(wish["url"], wish["key"], wish.get("ca"), wish.get("connect"))
    clients.run(wish["clients"], wish["seconds"])
    found = {"done": clients.done, "unexpected": clients.unexpected, "longest_s": round(clients.longest_s, 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
