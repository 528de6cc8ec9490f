"""Where benchmarks are kept on this computer: `results/NODE/SERVICE/TIME/`."""

from __future__ import annotations

import re
import time
from pathlib import Path

from moehost.runs import FILE, RunsError, Session, parse

ROOT = Path("results")


def series(target: str, service: str = "") -> Path:
    """Where all benchmarks of a node's service, or of an address, are kept."""
    return ROOT.joinpath(*filter(None, map(label, (target, service))))


def label(name: str) -> str:
    """The name of a host or an address, as one of a file."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")


def new(series: Path) -> Path:
    """A folder for a benchmark that begins now."""
    return series / time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())


def load(path: Path) -> Session:
    """The benchmark in a folder, or of a file; raises RunsError with one line where there is none."""
    file = path / FILE if path.is_dir() else path
    try:
        with file.open(encoding="utf-8") as lines:
            return parse(lines, str(file))
    except FileNotFoundError:
        raise RunsError(
            f"{file}: there is no such file; give a folder that `moehost bench` has made, or its {FILE}"
        ) from None
    except OSError as error:
        raise RunsError(f"{file}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunsError(f"{file}: is no text; give a {FILE}") from None


def last(series: Path, but: Path) -> Path | None:
    """The latest benchmark of a series that has runs, but this one; None where there is none."""
    for folder in sorted(series.glob("*/"), reverse=True):
        if folder.resolve() == but.resolve():
            continue
        try:
            if load(folder).measured:
                return folder
        except RunsError:  # it was ended before its first line
            continue
    return None
