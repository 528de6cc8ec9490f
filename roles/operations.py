"""What several roles do to a node."""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gevent import Timeout
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pyinfra import host, logger, state
from pyinfra.api import FileUploadCommand, FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.arguments import auth_argument_meta
from pyinfra.api.command import PyinfraCommand
from pyinfra.connectors.util import CommandOutput, clear_askpass_cache
from pyinfra.facts.files import FileContents
from pyinfra.operations import apt
from pyinfra.operations.util.files import generate_color_diff

import moehost
from moehost.deploying import TURNS
from roles.facts import DpkgAudit, FileStates, MissingPackages

# A board with 768 GB of memory trains it for ten minutes.
REBOOT_S = 1800
TEMPLATES = Path(__file__).parents[1] / "templates"

_environment = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # noqa: S701  (units and programs, no HTML)
)


def render(template: str, **values: Any) -> str:
    """The text of a template below `templates/`; a variable that is missing is an error."""
    return _environment.get_template(template).render(**values)


def refuse(reason: str) -> FunctionCommand:
    """The command that fails this host with one line (an exception would end the run of every host)."""
    if not state.is_executing:
        logger.warning("[%s] will fail: %s", host.name, reason)
    return FunctionCommand(_refused, (reason,), {})


def _refused(state: Any, host: Any, reason: str) -> bool:
    host.log_styled(reason, fg="red", log_func=logger.error)
    return False


def shell(host: Any, command: str | StringCommand, **arguments: Any) -> tuple[bool, CommandOutput]:
    """
    Run a command from a function of an operation's, with the rights that the operations of this host have.

    pyinfra 3.10.0 lets `host.run_shell_command` do it with those of who logs in, whatever `_sudo` the host has.
    """
    rights = {key: value for key in auth_argument_meta if (value := host.data.get(key)) is not None}
    done, output = host.run_shell_command(command, **rights, **arguments)
    return bool(done), output


def last_words(host: Any, which: str, lines: int) -> list[str]:
    """
    The last lines of a node's journal, those included that are on their way to it.

    + which: options and matches of journalctl, quoted for a shell
    """
    # Without rights for it, the journal is read as it is.
    read = f"journalctl --sync 2>/dev/null; journalctl --no-pager --output cat --lines {lines} {which}"
    return list(shell(host, read)[1].stdout_lines)


def unit_options(properties: list[str]) -> list[Any]:
    """The options of systemd-run for a unit with these properties."""
    return [QuoteString(f"--property={each}") for each in properties]


def sent(folder: str, modules: Iterable[str], beside: dict[str, Path], mode: str = "700") -> Iterator[PyinfraCommand]:
    """
    Make a folder of the node's anew, with modules of moehost's in its `moehost/`, and further files.

    + folder: path of the folder on the node
    + modules: names of the modules
    + beside: files on this computer, by their names in the folder
    + mode: permissions of the folders
    """
    package = Path(moehost.__file__).parent
    files = {f"moehost/{each}.py": package / f"{each}.py" for each in modules} | beside
    path = QuoteString(folder)
    yield StringCommand("rm -rf", path, "&& mkdir -p -m", mode, path, QuoteString(f"{folder}/moehost"))
    for name, file in files.items():
        target = f"{folder}/{name}"
        yield FileUploadCommand(str(file), target, remote_temp_filename=host.get_temp_filename(target))


def rebooted(reasons: str) -> Iterator[Any]:
    """Reboot the node, and wait until it answers again, with another boot than before."""
    with _turn():
        logger.warning("[%s] rebooting: %s", host.name, reasons)
        boots: list[str] = []
        yield FunctionCommand(_noted_boot, (boots,), {})
        # Beside the connection, which ends with it.
        yield "( sleep 1 && reboot ) </dev/null >/dev/null 2>&1 &"
        yield FunctionCommand(_came_back, (boots,), {})


@contextmanager
def _turn() -> Iterator[None]:
    """One machine reboots after the other also where each is deployed by a process of its own (`moehost deploy`)."""
    if TURNS not in os.environ or not state.is_executing:
        yield  # `_serial` of the operation sees to it
        return
    with Path(os.environ[TURNS]).open("w") as lock:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(2)
        yield


def _noted_boot(state: Any, host: Any, boots: list[str]) -> bool:
    boots.append(_boot(host))
    return bool(boots[0])


def _boot(host: Any) -> str:
    """What names the running boot, empty for a node that does not answer."""
    answered, output = shell(host, "cat /proc/sys/kernel/random/boot_id")
    return output.stdout.strip() if answered else ""


def _came_back(state: Any, host: Any, boots: list[str]) -> bool:
    # Its tracebacks of tries that fail are no news.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    end_s = time.monotonic() + REBOOT_S
    while time.monotonic() < end_s:
        time.sleep(5)
        # A connection into a machine that goes down may wait for ever, as `server.reboot` of pyinfra 3.10.0 was seen
        # to do: each try has an end, and the next begins anew.
        with suppress(Exception), Timeout(60, False):
            clear_askpass_cache(host)
            host.disconnect()
            host.connect(show_errors=False)
            if host.connected and _boot(host) not in ("", boots[0]):
                return True
    host.log_styled(
        f"does not answer {REBOOT_S // 60} minutes after its reboot; look at its console",
        fg="red",
        log_func=logger.error,
    )
    return False


@operation()
def dpkg_configured() -> Iterator[str]:
    """Finish what an interrupted dpkg left half done, once whoever holds its lock is through."""
    unfinished = host.get_fact(DpkgAudit)
    if not unfinished:
        host.noop("dpkg has nothing half done")
        return
    yield (
        "for try in $(seq 300); do said=$(dpkg --configure -a --force-confdef --force-confold 2>&1) && exit 0; "
        'case "$said" in *lock*) sleep 2 ;; *) break ;; esac; done; echo "$said" >&2; exit 1'
    )


@operation()
def packages(wanted: list[str], release: str | None = None) -> Iterator[Any]:
    """
    Have packages installed; reads the package lists anew only when one is missing.

    + wanted: names of packages
    + release: suite that the packages (and what they need) are taken from
    """
    missing = host.get_fact(MissingPackages, packages=wanted)
    if not missing:
        host.noop(f"installed: {', '.join(wanted)}")
        return
    yield from apt.update._inner()
    options = f"--target-release {release}" if release else None
    yield from apt.packages._inner(packages=missing, no_recommends=True, extra_install_args=options)


def file_state(text: str, mode: str = "644", owner: str = "root:root") -> list[str]:
    """What the fact FileStates says of a file with this text."""
    return [hashlib.sha256(text.encode()).hexdigest(), mode.lstrip("0"), owner]


@operation()
def files(contents: dict[str, str], mode: str = "644", owner: str = "root:root") -> Iterator[PyinfraCommand]:
    """
    Have text files with these contents, each replaced in one step.

    + contents: path of each file and the text in it; parent directories are made
    + mode: permissions of the files
    + owner: user and group of the files, `user:group`
    """
    found = host.get_fact(FileStates, paths=list(contents))
    different = [path for path, text in contents.items() if found.get(path) != file_state(text, mode, owner)]
    user, _, group = owner.partition(":")
    for path in different:
        # What others may not read on the node is not shown here, either.
        if state.config.DIFF and int(mode, 8) & 0o004:
            _show_difference(path, contents[path])
        new = QuoteString(f"{path}.new")
        # Over standard input: no temporary file that others may read, no text in a command line.
        yield StringCommand(
            "install", "-D", "-m", mode, "-o", user, "-g", group, "/dev/stdin", new,
            "&&", "sync", new, "&&", "mv", "-T", new, QuoteString(path),
            _stdin=contents[path],
        )  # fmt: skip
    if not different:
        host.noop(f"as wanted: {', '.join(contents)}")


def _show_difference(path: str, wanted: str) -> None:
    found = host.get_fact(FileContents, path=path) or []
    host.log(f"Will modify {path}", logger.info)
    for line in generate_color_diff(found, wanted.splitlines()):
        logger.info("  %s", line)
