"""What `pyinfra ... --json` says beside its own: how long each role took on each host, how many commands the host was
given, and why it failed.

pyinfra 3.10.0 counts operations over all hosts and prints nothing when every host has failed. `install` is called by
config.py, before there is a state that handlers could be added to.
"""

import json
import logging
import os
import re
import sys
import time
from collections import defaultdict
from typing import Any

import click
from pyinfra.api import Host
from pyinfra.api.state import BaseStateCallback
from pyinfra_cli import prints

from moehost.deploying import EVENTS
from moehost.role_times import HostRun, Operation, last_line, roles

COLOURS = re.compile(r"\033\[[\d;]*m")
ABOUT_HOST = re.compile(r"\s*\[(?P<host>[^\]]+)\]\s+(?P<text>.*)", re.DOTALL)


class Timing(BaseStateCallback, logging.Handler):
    """Watches a run: its operations, and the lines that are warnings or errors."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.WARNING)
        self.runs: dict[str, HostRun] = defaultdict(HostRun)
        self._begun: dict[str, tuple[Operation, str, float]] = {}
        self._said: dict[str, list[str]] = defaultdict(list)
        self._printed = False

    # Lines of pyinfra's log: an operation that refuses a host has no other output.
    def emit(self, record: logging.LogRecord) -> None:
        found = ABOUT_HOST.fullmatch(COLOURS.sub("", record.getMessage()))
        if found and found["host"] in self._begun:
            self._said[found["host"]].append(found["text"])
        elif found and record.levelno >= logging.ERROR:
            self.runs[found["host"]].said.append(found["text"].strip())

    # pyinfra declares these as static methods, and calls them on the handler.
    def host_connect_error(self, state: Any, host: Any, error: Exception) -> None:  # type: ignore[override]
        self.runs[host.name].has_failed = True

    def operation_host_start(self, state: Any, host: Any, op_hash: str) -> None:  # type: ignore[override]
        # Of an operation that a host does not have, or that is part of another one, nothing is to be told.
        if op_hash not in state.ops[host] or state.ops[host][op_hash].parent_op_hash:
            return
        operation = named(state, host, op_hash)
        run = self.runs[host.name]
        self._settle(state, host)
        if run.operations and run.operations[-1].role != operation.role:
            self._tell_role(host.name)
        tell(host=host.name, operation=operation.title)
        self._begun[host.name] = operation, op_hash, time.monotonic()
        run.operations.append(operation)

    def operation_host_success(self, state: Any, host: Any, op_hash: str, *counts: int) -> None:  # type: ignore[override]
        self._end(host.name, op_hash)

    def operation_host_error(self, state: Any, host: Any, op_hash: str, *counts: int) -> None:  # type: ignore[override]
        said = self._said[host.name]
        if (operation := self._end(host.name, op_hash)) and not state.ops[host][op_hash].global_arguments.get(
            "_ignore_errors"
        ):
            operation.failed = last_line(said)
            self._tell_role(host.name)

    def _end(self, host: str, op_hash: str) -> Operation | None:
        operation, begun, began = self._begun.get(host, (None, "", 0.0))
        if operation is None or begun != op_hash:
            return None
        operation.duration_s = time.monotonic() - began
        self._said[host] = []
        return operation

    def _settle(self, state: Any, host: Any) -> None:
        """Know whether the last operation changed something: pyinfra notes it after it has called its handlers."""
        operation, op_hash, _ = self._begun.pop(host.name, (None, "", 0.0))
        if operation and operation.failed is None:
            meta = state.ops[host][op_hash].operation_meta
            operation.changed = meta.is_complete() and meta.did_change()

    def _tell_role(self, host: str) -> None:
        role = roles(self.runs[host].operations)[-1]
        tell(host=host, **role)

    def hosts(self, state: Any, dry: bool) -> dict[str, Any]:
        """What is to be said of each host that the run was about."""
        error = sys.exc_info()[1]
        is_broken = isinstance(error, Exception | KeyboardInterrupt)
        found = {}
        for host in state.inventory:
            if not state.is_host_in_limit(host):
                continue
            run = self.runs[host.name]
            if dry and not run.operations and not is_broken:
                run.operations = [planned(state, host, op_hash) for op_hash in host.op_hash_order]
            self._settle(state, host)
            run.has_failed |= host in state.failed_hosts
            if error and is_broken:
                run.unfinished = f"the run ended: {said_by(error)}"
            found[host.name] = run.to_json()
        return found

    def print_json(self, state: Any, dry: bool) -> None:
        """Print what pyinfra prints, and the hosts."""
        self._printed = True
        results = None if dry else prints.build_results_json(state)
        hosts = self.hosts(state, dry)
        for host in hosts:
            done = self.runs[host].operations
            if done and done[-1].failed is None and not dry:
                self._tell_role(host)
        prints.print_json({"plan": prints.build_plan_json(state), "results": results, "hosts": hosts})

    def print_broken(self, state: Any) -> None:
        """Print the same for a run that an error ends, of which pyinfra prints nothing."""
        wish = click.get_current_context().params
        is_run = wish["json_output"] and wish["operations"][0] not in ("fact", "debug-inventory")
        if is_run and not self._printed and not isinstance(sys.exc_info()[1], SystemExit | None):
            self.print_json(state, dry=wish["dry"] or not wish["yes"])


def named(state: Any, host: Any, op_hash: str) -> Operation:
    """An operation by its name on this host: what hosts share knows the names on all of them."""
    title = sorted(state.op_meta[op_hash].names)[0]
    role, _, label = title.partition(" | ")
    own = state.ops[host][op_hash].global_arguments.get("name")
    return Operation(role, own or label) if label else Operation("", own or role)


def planned(state: Any, host: Any, op_hash: str) -> Operation:
    """An operation that was only planned."""
    operation = named(state, host, op_hash)
    operation.changed = bool(state.ops[host][op_hash].operation_meta._maybe_is_change)
    return operation


def said_by(error: BaseException) -> str:
    """One line about what ended a run; pyinfra wraps the errors that it did not expect."""
    inner = getattr(error, "exception", error)
    first, *_ = str(inner).strip().splitlines() or [""]
    return f"{type(inner).__name__}: {first}" if first else type(inner).__name__


def tell(**event: Any) -> None:
    """Say something to whoever has started this run to hear of it; without them it goes no further."""
    if EVENTS in os.environ:
        try:
            os.write(int(os.environ[EVENTS]), f"{json.dumps(event)}\n".encode())
        except BrokenPipeError:
            # Who started it is gone. The next one must not meet a run that nobody knows of.
            os._exit(1)


def install(cli: Any) -> None:
    """Have the runs of pyinfra's command line watched, and their JSON complete.

    + cli: the module `pyinfra_cli.cli`
    """
    timing = Timing()
    connect_all, disconnect_all = cli.connect_all, cli.disconnect_all
    run_shell_command = Host.run_shell_command

    def counted(host: Host, *arguments: Any, **named: Any) -> Any:
        timing.runs[host.name].commands += 1
        return run_shell_command(host, *arguments, **named)

    def connect(state: Any) -> None:
        state.add_callback_handler(timing)
        logging.getLogger("pyinfra").addHandler(timing)
        connect_all(state)

    def disconnect(state: Any) -> None:
        timing.print_broken(state)
        disconnect_all(state)

    cli.connect_all, cli.disconnect_all, cli.print_run_json = connect, disconnect, timing.print_json
    Host.run_shell_command = counted  # type: ignore[method-assign]
