"""What a node knows of its models."""

import json
import shlex
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from moehost.confined import FETCHER
from moehost.store import Manifest
from roles.facts import from_json, units


class StoredModel(FactBase[Manifest | None]):
    """The manifest of a model in the store, or None where there is no model, or its files have other sizes, or an
    inspection has found one damaged.

    + folder: folder of the model
    """

    def command(self, folder: str) -> StringCommand:
        return StringCommand(
            "cd", QuoteString(folder), "2>/dev/null && test -s manifest.json || exit 0;",
            "cat manifest.json; echo; echo ===; stat -c '%s %n' *.gguf damaged.json 2>/dev/null; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> Manifest | None:
        text, listing = output[: output.index("===")], output[output.index("===") + 1 :]
        try:
            manifest = Manifest.from_json(json.loads("\n".join(text)))
        except ValueError:
            return None
        sizes = {name: int(size) for size, name in (line.split(" ", 1) for line in listing)}
        return manifest if manifest.fits(sizes) and "damaged.json" not in sizes else None


class GoodFiles(FactBase[dict[str, str]]):
    """SHA-256 of the files of a model in the store that are as they should be, as far as is known, by name.

    + folder: folder of the model
    """

    default = dict

    def command(self, folder: str) -> StringCommand:
        return StringCommand(
            "cd", QuoteString(folder), "2>/dev/null && test -s manifest.json || exit 0;",
            "tr -d '\\n' <manifest.json; echo; { tr -d '\\n' <damaged.json; } 2>/dev/null; echo;",
            "stat -c '%s %n' *.gguf 2>/dev/null; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        manifest, damaged, *listing = output
        sizes = {name: int(size) for size, name in (line.split(" ", 1) for line in listing)}
        bad = (from_json(damaged) or {}).get("files", {})
        there = (from_json(manifest) or {}).get("files", [])
        good = (each for each in there if sizes.get(each["name"]) == each["size_bytes"] and each["name"] not in bad)
        return {each["name"]: each["sha256"] for each in good}


class Inspection(FactBase[dict[str, str]]):
    """The regular inspection: is its timer `enabled` and `active`, has it `failed` (else another state of systemd's),
    needs systemd a `reload`, is a model `damaged` (`yes` or `no`).

    + store: the model store
    """

    default = dict

    def command(self, store: str) -> StringCommand:
        return StringCommand(
            "command -v systemctl >/dev/null || exit 0;",
            "systemctl show --property Id,UnitFileState,ActiveState,NeedDaemonReload moehost-verify.timer",
            f"moehost-verify.service; ls {shlex.quote(store)}/*/damaged.json 2>/dev/null; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        found = units("\n".join(output))
        timer, service = (found.get(f"moehost-verify.{kind}", {}) for kind in ("timer", "service"))
        return {
            "enabled": timer.get("UnitFileState", ""),
            "active": timer.get("ActiveState", ""),
            "failed": service.get("ActiveState", ""),
            "reload": "yes" if any(unit.get("NeedDaemonReload") == "yes" for unit in found.values()) else "no",
            "damaged": "yes" if any(line.endswith("/damaged.json") for line in output) else "no",
        }


class Catalogue(FactBase[list[dict[str, Any]]]):
    """The models in the store, as `moehost.inspection --list` prints them; empty where that program is not there.

    + store: the model store
    + library: where the node has moehost's modules
    """

    default = list

    def command(self, store: str, library: str) -> StringCommand:
        return StringCommand(
            f"PYTHONPATH={library} python3 -B -m moehost.inspection --list", QuoteString(store), "2>/dev/null || true"
        )

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return from_json("".join(output), list) or []


def own(store: str, action: str) -> StringCommand:
    """The command that lets `find` do this to what is moehost's in a store: what is on its way, and whole models.

    A file with a second name is somebody else's, too.
    """
    what = f"\\( -type d -o -type f -links 1 \\) {action}"
    return StringCommand(
        f"store={shlex.quote(store)}; for each in \"$store\"/*/manifest.json; do",
        f"test -f \"$each\" && find \"${{each%/*}}\" -maxdepth 1 {what}; done;",
        f"test -d \"$store/.incoming\" && find \"$store/.incoming\" {what}; true",
    )  # fmt: skip


class Strangers(FactBase[list[str]]):
    """What is moehost's in the store and does not belong to the account that fetches, as an older version left it.

    Accounts are compared by name: after a reinstallation their numbers may be those of others.

    + store: the model store
    """

    default = list

    def command(self, store: str) -> StringCommand:
        return own(store, "-printf '%u:%g %p\\n'")

    def process(self, output: list[str]) -> list[str]:
        pairs = (line.split(" ", 1) for line in output)
        return [path for owner, path in pairs if owner != f"{FETCHER}:{FETCHER}"]


class Fetch(FactBase[dict[str, Any]]):
    """What brings a model just now: `active`, the `job` it was given, and its `progress`.

    + unit: name of the transient unit
    + job: path of the job
    + progress: path of the progress file
    """

    default = dict

    def command(self, unit: str, job: str, progress: str) -> StringCommand:
        return StringCommand(
            "echo active=$(systemctl is-active", QuoteString(unit), "2>/dev/null);",
            # Not by echo, which would read the backslashes in them; each in one line.
            "printf 'job=%s\\n' \"$(cat", QuoteString(job), "2>/dev/null | tr -d '\\n')\";",
            "printf 'progress=%s\\n' \"$(cat", QuoteString(progress), "2>/dev/null)\"",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, Any]:
        fields = dict(line.split("=", 1) for line in output)
        return {
            "active": fields.get("active") in ("active", "activating"),
            "job": from_json(fields.get("job", "")),
            "progress": from_json(fields.get("progress", "")) or {},
        }
