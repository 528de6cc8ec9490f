"""HAProxy on the router, from beside it: what it reads at a start, who gets requests, and who is at work.

    python3 -m moehost.balancer prepare | reload PID | compare | drain LABEL... | ready LABEL... | settle | status

Standard library only: it goes to the router as it is. A node that is drained has a *lease*, a file with the time at
which it ends. HAProxy's own state is made from these files at each start and reload, and `settle` compares the two,
so no drain is lost by a reload and none is forgotten.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

FOLDER = Path(os.environ.get("ROUTER_FOLDER", "/etc/moehost/router"))
# Of root, for the router's account to read; and of that account.
FILES = Path(os.environ.get("ROUTER_FILES", "/run/moehost-router-files"))
DRAINS = Path(os.environ.get("ROUTER_DRAINS", "/run/moehost-router-drains"))
SOCKETS = Path(os.environ.get("ROUTER_SOCKETS", "/run/moehost-router"))
PROGRAM = Path("/usr/sbin/haproxy")
NAME, KEY = re.compile(r"[a-z0-9][a-z0-9._-]*"), re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
# What HAProxy was started with, and which start or reload that was: variables of its own, which it tells.
VARIABLE, TURN = "MOEHOST_RUNNING", "MOEHOST_TURN"
# How long sockets are away at a reload, at most, and how long a reload may take, seconds.
HANDED_OVER_S, RELOADED_S = 3.0, 30.0
# HAProxy's words: an administrator has put it into maintenance; its name has no address.
FORCED, UNRESOLVED = 1, 32
# Where the fields of a line of a server-state file stand.
BACKEND, SERVER, ADMINISTRATIVE = 1, 3, 6
STATE_HEAD = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port\n"
)


class NoAnswerError(RuntimeError):
    """HAProxy does not answer, or says no; one line."""


def ask(command: str, master: bool = False) -> str:
    """What HAProxy says to a command; its first process, `master`, knows the others. Raises NoAnswerError."""
    path = SOCKETS / ("master.sock" if master else "admin.sock")
    end_s = time.monotonic() + HANDED_OVER_S
    while True:
        try:
            return _asked(path, command)
        except OSError as error:
            # At a reload nobody listens for a moment; where HAProxy does not run at all, there is no such folder.
            if not isinstance(error, ConnectionRefusedError) or time.monotonic() > end_s:
                raise NoAnswerError(f"HAProxy can't be asked at {path}: {error.strerror or error}") from None
            time.sleep(0.1)


def _asked(path: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(10)
        talk.connect(str(path))
        talk.sendall(f"{command}\n".encode())
        talk.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: talk.recv(1 << 16), b"")).decode(errors="replace")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def wanted() -> dict[str, dict[str, int]]:
    """The nodes of each model, and the port of each, as the deploy wrote them."""
    found: dict[str, dict[str, int]] = json.loads(_read(FOLDER / "nodes.json") or "{}")
    return found


def users(text: str) -> str:
    """A list of users' keys as a map of HAProxy's: `KEY NAME` a line. What can't be a key is passed over."""
    found: dict[str, str] = {}
    for name, key, *_ in (line.split() for line in text.splitlines() if len(line.split()) > 1):
        if NAME.fullmatch(name) and KEY.fullmatch(key):
            found.setdefault(key, name)
    return "".join(f"{key} {name}\n" for key, name in found.items())


def made() -> dict[str, str]:
    """The files with keys in them, as they should be now."""
    owners, own = FOLDER / "user-keys-of-the-owner", FOLDER / "user-keys"
    key = _read(FOLDER / "node-key").strip()
    return {"users": users(_read(owners if owners.exists() else own)), "node": f"router {key}\n" if key else ""}


def digest(texts: Mapping[str, str]) -> str:
    """What a HAProxy is recognised by that was started with these files, those of the folder, and this program."""
    found = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    names = ["haproxy.cfg", "models.json", "nodes.json", "certificate.pem"]
    for path in [*(FOLDER / each for each in names), *sorted((FOLDER / "nodes").glob("*.crt"))]:
        found.update(f"{path.name}\0{_read(path)}\0".encode())
    with contextlib.suppress(OSError):
        program = PROGRAM.stat()
        found.update(f"{program.st_ino} {program.st_mtime_ns} {program.st_size}".encode())
    return found.hexdigest()[:16]


def leases(now: float | None = None) -> dict[str, float]:
    """The nodes that are drained, and until when (seconds since 1970)."""
    now = time.time() if now is None else now
    found = {}
    for path in DRAINS.glob("*.until"):
        with contextlib.suppress(ValueError):
            if (until := float(_read(path))) > now:
                found[path.stem] = until
    return found


def state(nodes: Mapping[str, Mapping[str, int]], running: str, drained: Collection[str]) -> str:
    """
    The server-state file that HAProxy begins with: what is known of servers goes on, a new one is down until checked.

    + nodes: labels and ports of the nodes of each model
    + running: what `show servers state` says, empty at a start
    + drained: labels of the nodes that get nothing
    """
    known = {tuple(words[i] for i in (BACKEND, SERVER)): words for words in _state_lines(running)}
    lines = []
    for number, (model, servers) in enumerate(nodes.items(), start=1):
        for index, (label, port) in enumerate(servers.items(), start=1):
            words = known.get((f"model-{model}", label))
            if words is None or int(words[ADMINISTRATIVE]) & UNRESOLVED:
                fresh = (
                    f"{number} model-{model} {index} {label} 127.0.0.1 0 0 1 1 0 1 0 0 6 0 0 0 - {port} - 1 0 - - 0"
                )
                words = fresh.split()
            words[ADMINISTRATIVE] = str(FORCED if label in drained else 0)
            lines.append(" ".join(words))
    return STATE_HEAD + "".join(f"{line}\n" for line in lines)


def _state_lines(text: str) -> Iterator[list[str]]:
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return (words for words in lines if len(words) > ADMINISTRATIVE + 1)


def prepare() -> None:
    """Write what HAProxy reads beside its configuration; before each start and reload, by root."""
    group = os.environ.get("ROUTER_GROUP")
    texts = made()
    try:
        running = ask("show servers state")
    except NoAnswerError:
        running = ""
    mark = f"global\n\tsetenv {VARIABLE} {digest(texts)}\n\tsetenv {TURN} {time.time_ns()}\n"
    FILES.mkdir(mode=0o750, exist_ok=True)
    for name, text in {
        **texts, "running.cfg": mark, "servers.state": state(wanted(), running, leases())
    }.items():  # fmt: skip
        new = FILES / f"{name}.new"
        new.touch(mode=0o600)
        new.write_text(text)
        if group:
            _give(new, group, 0o640)
        new.replace(FILES / name)
    if group:
        _give(FILES, group, 0o750)


def _give(path: Path, group: str, mode: int) -> None:
    import grp

    os.chown(path, 0, grp.getgrnam(group).gr_gid)
    path.chmod(mode)


def compare() -> str:
    """`current` where HAProxy goes by all files as they are now, `old` where a reload is owed, `none` without it."""
    try:
        said = ask(f"show env {VARIABLE}").strip()
    except NoAnswerError:
        return "none"
    return "current" if said == f"{VARIABLE}={digest(made())}" else "old"


def reload(pid: int) -> None:
    """
    Have HAProxy go by what `prepare` has written, and wait until it does; by its own account, which reads no key.

    + pid: of its first process
    """
    turn = _read(FILES / "running.cfg").partition(f"setenv {TURN} ")[2].strip()
    end_s, told_s = time.monotonic() + RELOADED_S, 0.0
    while time.monotonic() < end_s:
        # A process that is just being replaced may miss a signal.
        if time.monotonic() - told_s > RELOADED_S / 6:
            os.kill(pid, signal.SIGUSR2)
            told_s = time.monotonic()
        with contextlib.suppress(NoAnswerError):
            if ask(f"show env {TURN}").strip() == f"{TURN}={turn}":
                return
        time.sleep(0.05)
    raise NoAnswerError(f"HAProxy goes on with what it had {RELOADED_S:.0f} s ago; its log says why")


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One change of leases at a time."""
    with (DRAINS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def rows(worker: str = "") -> list[dict[str, str]]:
    """The servers and backends of HAProxy's statistics; those of a worker that is not the newest by its pid."""
    text = ask(f"@!{worker} show stat" if worker else "show stat", master=bool(worker))
    found = csv.DictReader(io.StringIO(text.lstrip("# ")))
    return [row for row in found if (row.get("pxname") or "").startswith("model-")]


def workers() -> list[str]:
    """Pids of HAProxy's workers; a reload leaves the old one until its answers are through."""
    lines = (line.split() for line in ask("show proc", master=True).splitlines())
    return [words[0] for words in lines if words[1:2] == ["worker"]]


def under_way(labels: Iterable[str]) -> dict[str, int]:
    """How many requests each of these nodes has, in all workers."""
    found = dict.fromkeys(labels, 0)
    for worker in workers():
        # One that ends while it is asked has none.
        with contextlib.suppress(NoAnswerError):
            for row in rows(worker):
                if row["svname"] in found:
                    found[row["svname"]] += int(row["scur"] or 0) + int(row["qcur"] or 0)
    return found


def settle() -> None:
    """Have HAProxy go by the leases; those that are over are taken away."""
    with locked():
        drained = leases()
        for path in DRAINS.glob("*.until"):
            if path.stem not in drained:
                path.unlink()
        commands = []
        for words in _state_lines(ask("show servers state")):
            server, forced = f"{words[BACKEND]}/{words[SERVER]}", int(words[ADMINISTRATIVE]) & FORCED
            if words[SERVER] in drained and not forced:
                commands.append(f"set server {server} state maint")
            elif words[SERVER] not in drained and forced:
                # It is checked before it gets anything.
                commands.append(f"set server {server} state ready; set server {server} health down")
        if commands and (said := ask("; ".join(commands)).strip()):
            raise NoAnswerError(said.splitlines()[0])


def known(labels: Collection[str]) -> list[str]:
    """Those of the labels that the router stands before; raises NoAnswerError for others."""
    there = {label for servers in wanted().values() for label in servers}
    if strangers := sorted(set(labels) - there):
        raise NoAnswerError(f"the router does not know {', '.join(strangers)}; deploy it first")
    return list(labels)


def drain(labels: Collection[str], lease_s: float, wait_s: float) -> str:
    """
    Give these nodes nothing new, and wait until they have nothing; what they still have after `wait_s`, or nothing.

    Doing it again renews the lease.
    """
    with locked():
        for label in known(labels):
            (DRAINS / f"{label}.new").write_text(f"{time.time() + lease_s:.3f}\n")
            (DRAINS / f"{label}.new").replace(DRAINS / f"{label}.until")
    end_s = time.monotonic() + wait_s
    is_idle = False
    while True:
        # A reload that is just under way begins with the leases of before: it is told again.
        settle()
        was_idle, left = is_idle, {label: count for label, count in under_way(labels).items() if count}
        is_idle = not left
        # Twice: what was on its way to a node at the first look has come by the second.
        if is_idle and was_idle:
            return ""
        if time.monotonic() > end_s:
            return ", ".join(f"{label}: {count} request(s)" for label, count in left.items())
        time.sleep(0.25)


def ready(labels: Collection[str], wait_s: float) -> str:
    """Give these nodes requests again, as soon as they are well; those that are not within `wait_s`, or nothing."""
    with locked():
        for label in known(labels):
            (DRAINS / f"{label}.until").unlink(missing_ok=True)
    settle()
    end_s = time.monotonic() + wait_s
    while True:
        down = {row["svname"] for row in rows() if row["svname"] in labels and not row["status"].startswith("UP")}
        if not down or time.monotonic() > end_s:
            return ", ".join(sorted(down))
        time.sleep(0.25)


def status() -> dict[str, object]:
    """What people and programs are told: nodes by label, models by name."""
    drained, stat = leases(), rows()
    found = {(row["pxname"].removeprefix("model-"), row["svname"]): row for row in stat}
    labels = dict.fromkeys(label for servers in wanted().values() for label in servers)
    counts = under_way(labels)

    def of(label: str) -> dict[str, object]:
        served = {model: found.get((model, label), {}) for model, servers in wanted().items() if label in servers}
        models = {
            model: {"state": row.get("status") or "unknown", "check": row.get("last_chk") or ""}
            for model, row in served.items()
        }
        return {"requests": counts[label], "drained_until": drained.get(label), "models": models}

    waits = {model: row for (model, server), row in found.items() if server == "BACKEND"}
    return {
        "nodes": {label: of(label) for label in labels},
        "models": {
            name: {"waiting": int(row["qcur"] or 0), "nodes_ready": int(row["act"] or 0)}
            for name, row in waits.items()
        },
        "workers": len(workers()),
    }


def main(words: list[str]) -> int:
    """Do what a deploy, a timer or `moehost router` says; 1 with a line where that does not work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=["prepare", "reload", "compare", "drain", "ready", "settle", "status"])
    parser.add_argument("labels", nargs="*")
    parser.add_argument("--lease-s", type=float, default=3600)
    parser.add_argument("--wait-s", type=float, default=600)
    wish = parser.parse_args(words)
    try:
        if wish.do == "prepare":
            prepare()
        elif wish.do == "reload":
            reload(int(wish.labels[0]))
        elif wish.do == "compare":
            print(f"config={compare()}")
        elif wish.do == "settle":
            settle()
        elif wish.do == "status":
            print(json.dumps(status()))
        elif wish.do == "drain" and (left := drain(wish.labels, wish.lease_s, wish.wait_s)):
            raise NoAnswerError(f"after {wish.wait_s:.0f} s there is still {left}; no new ones come")
        elif wish.do == "ready" and (down := ready(wish.labels, wish.wait_s)):
            raise NoAnswerError(f"not well within {wish.wait_s:.0f} s, so nothing is sent yet: {down}")
    except NoAnswerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
