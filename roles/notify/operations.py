"""How failures come to be told, and how that is taken away."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation

import moehost
from moehost import message
from moehost.settings_metrics import Notify
from roles.base import PROGRAMS
from roles.facts import FileStates
from roles.models.operations import LIBRARY
from roles.notify.facts import ACCOUNT, Telling
from roles.operations import files, last_words, refuse, render, shell

UNITS = "/etc/systemd/system"
URL = "/etc/moehost/notify/url"
PROGRAM = f"{PROGRAMS}/notify"
ADDRESS = re.compile(r"https?://[^\s\"\\]+")
# Prefixes of the names of units; systemd takes a drop-in below such a name for all of them.
DROP_INS = {
    **{f"{UNITS}/{each}-.service.d/50-moehost-notify.conf": "on-failure" for each in ("llama-server", "moehost")},
    # Behind those above, which mean this unit, too.
    f"{UNITS}/moehost-notify@.service.d/60-moehost-notify.conf": "itself",
}
UNIT = f"{UNITS}/moehost-notify@.service"
SYSUSERS = "/etc/sysusers.d/moehost-notify.conf"
MODULES = {f"{LIBRARY}/moehost/{each}.py": each for each in message.MODULES}
EVER = [*DROP_INS, UNIT, SYSUSERS, PROGRAM, URL, *(path for path, each in MODULES.items() if each != "__init__")]


def texts(wish: Notify) -> dict[str, str]:
    """The units and modules by path."""
    unit = render(
        "notify/moehost-notify@.service.j2", library=LIBRARY, programs=PROGRAMS, by=wish.by, mail_to=wish.mail_to
    )
    package = Path(moehost.__file__).parent
    return {
        **{path: (package / f"{each}.py").read_text() for path, each in MODULES.items()},
        UNIT: unit,
        SYSUSERS: render("notify/sysusers.conf.j2"),
        **{path: render(f"notify/{each}.conf.j2") for path, each in DROP_INS.items()},
    }


@operation()
def told(wish: Notify, url: str | None) -> Iterator[Any]:
    """
    Have the owner told when a unit of moehost's fails. No unit's own text changes, and no service restarts.

    + wish: how the owner is told
    + url: text of the file with the address
    """
    there = host.get_fact(Telling)
    if wish.by == "mail" and not there["sendmail"]:
        yield refuse("notify.by: 'mail' needs /usr/sbin/sendmail; install an MTA, e.g. msmtp-mta, or choose ntfy")
        return
    if url is not None and not ADDRESS.fullmatch(url.strip()):
        yield refuse("notify.url_file: holds no address; write one line that begins with https:// or http://")
        return
    changes = [] if url is None else list(files._inner(contents={URL: f"{url.strip()}\n"}, mode="600"))
    if url is None and URL in host.get_fact(FileStates, paths=[URL]):
        changes.append(f"rm {URL}")
    changes += files._inner(contents={PROGRAM: render("notify/notify.j2")}, mode="755")
    changes += files._inner(contents=texts(wish))
    if there["account"].strip() != ACCOUNT:
        changes.append(f"systemd-sysusers {SYSUSERS}")
    yield from changes
    if changes or there["reload"]:
        yield "systemctl daemon-reload"
    else:
        host.noop(f"failures are told by {wish.by}")


@operation()
def silent() -> Iterator[Any]:
    """Take away what tells of failures."""
    leave = list(host.get_fact(FileStates, paths=EVER))
    if not leave:
        host.noop("nobody is told")
        return
    folders = sorted({path.rpartition("/")[0] for path in [*DROP_INS, URL]})
    yield StringCommand("rm -f", *(QuoteString(path) for path in leave))
    yield StringCommand("rmdir", *(QuoteString(each) for each in folders), "2>/dev/null; true")
    if host.get_fact(Telling)["account"].strip():
        yield f"userdel {ACCOUNT}"
    yield "systemctl daemon-reload; rm -rf /run/moehost-notify"


@operation(is_idempotent=False)
def tried(wish: Notify | None) -> Iterator[Any]:
    """
    Tell the owner something, to see whether it comes.

    + wish: how the owner is told
    """
    if wish is None:
        yield refuse("notify: is not set; write e.g. notify: {by: ntfy, url_file: ...}, see docs/metrics.md")
        return
    yield FunctionCommand(_sent, (wish.by,), {})


def _sent(state: Any, host: Any, by: str) -> bool:
    unit = "moehost-notify@test.service"
    done, _ = shell(host, f"systemctl reset-failed {unit} 2>/dev/null; systemctl start {unit}")
    if done:
        host.log(f"sent by {by}; if nothing comes, look at the other end", logger.info)
        return True
    invocation = f"_SYSTEMD_INVOCATION_ID=$(systemctl show --property InvocationID --value {unit})"
    said = [line for line in last_words(host, invocation, 5) if line.strip()]
    reason = said[0] if said else "deploy first (pyinfra inventory deploy.py)"
    host.log_styled(f"could not be sent by {by}: {reason}", fg="red", log_func=logger.error)
    return False
