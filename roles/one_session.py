"""A host's facts are asked over one session of SSH, instead of one for each of them.

To begin a session costs a node more than most facts: sshd forks, and PAM and a login shell have their say. Only facts
share one. It ends before any other command is run, so what such a command has changed for whoever logs in next
(groups, limits, the environment) holds for the facts that come after it, and a node has no more sessions at a time
than with pyinfra 3.10.0 alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from paramiko import SSHException
from pyinfra.api import facts
from pyinfra.connectors.sshuserclient import SSHClient

# As paramiko has it for a command of which no status came.
UNKNOWN = -1

_is_fact: ContextVar[bool] = ContextVar("is_fact", default=False)
_sessions: WeakKeyDictionary[SSHClient, Session] = WeakKeyDictionary()


class Session:
    """A shell on a node that runs one command after the other, each in a shell of its own."""

    def __init__(self, client: SSHClient) -> None:
        transport = client.get_transport()
        if transport is None:
            raise SSHException("not connected")
        self._channel = transport.open_session()
        self._channel.exec_command("exec sh")
        self._outputs = self._channel.makefile("r"), self._channel.makefile_stderr("r")
        # It stands behind each output. Nobody on the node sees it: it is in no argument and no environment.
        self._mark = uuid4().hex
        self._channel.sendall(f"mark={self._mark}\n".encode())
        self._unread, self._status = 0, UNKNOWN

    @property
    def is_at_rest(self) -> bool:
        """Whether it can be asked: nothing is left of an answer that nobody waited for."""
        return not self._unread and not self._channel.exit_status_ready()

    def ask(self, command: str) -> tuple[NoInput, Output, Output]:
        """Run a command; what paramiko's `exec_command` gives: its input, output and errors."""
        self._unread, self._status = len(self._outputs), UNKNOWN
        told = """printf '%s %s\\n' "$mark" $?; printf '%s\\n' "$mark" >&2"""
        self._channel.sendall(f"sh -c {shlex.quote(command)} </dev/null; {told}\n".encode())
        output, errors = (Output(self, self._lines(each)) for each in self._outputs)
        return NoInput(), output, errors

    def _lines(self, output: Iterable[str]) -> Iterator[str]:
        """The lines up to the mark, or to the end of a session that breaks; the last line may have no end."""
        for line in output:
            text, mark, status = line.partition(self._mark)
            if text:
                yield text
            if mark:
                self._status = int(status) if status.strip() else self._status
                self._unread -= 1
                return

    def recv_exit_status(self) -> int:
        """The status of the last command, once its output is read."""
        return self._status

    def end(self) -> None:
        """Let the shell go."""
        self._channel.close()


class Output:
    """Lines of a command, and `channel`, which knows its status."""

    def __init__(self, channel: Session, lines: Iterator[str]) -> None:
        self.channel = channel
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        return self._lines


class NoInput:
    """The input of a command that reads none."""

    def close(self) -> None:
        """It has no end, either."""


def _end(client: SSHClient) -> None:
    if session := _sessions.pop(client, None):
        session.end()


def install() -> None:
    """Have facts share a session."""
    get_fact: Callable[..., Any] = facts._get_fact
    execute: Callable[..., Any] = SSHClient.exec_command

    def get_fact_so(*arguments: Any, **named: Any) -> Any:
        token = _is_fact.set(True)
        try:
            return get_fact(*arguments, **named)
        finally:
            _is_fact.reset(token)

    def exec_command(client: SSHClient, command: str, get_pty: bool = False, **named: Any) -> Any:
        session = _sessions.get(client)
        if not _is_fact.get() or get_pty or named:
            _end(client)
            return execute(client, command, get_pty=get_pty, **named)
        if session is None or not session.is_at_rest:
            _end(client)
            session = _sessions[client] = Session(client)
        return session.ask(command)

    facts._get_fact = get_fact_so
    SSHClient.exec_command = exec_command  # type: ignore[method-assign]
