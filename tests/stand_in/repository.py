"""Makes a git repository of the stand-in engine: a history of good and of broken versions, one commit each.

    python -m tests.stand_in.repository FOLDER

The stand-in takes the place of ik_llama.cpp where versions are checked out, built, proved, switched to and left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ENGINE = Path(__file__).parent / "engine"
FIXTURES = Path(__file__).parents[1] / "fixtures"
HELP = FIXTURES / "help/ik_llama.cpp-8337e4cd-cpu.txt"
OPTIONS = FIXTURES / "ik_llama-options-8337e4cd.json"

# What can be wrong with a commit; CMakeLists.txt reads it from fault.txt.
FAULTS = {
    "does-not-compile": "fails in the eighth of ten units",
    "wrong-commit": "--version names another commit",
    "no-vnni": "has no vpdpbusd, whatever CMake was asked for",
    "crash-at-start": "aborts while it loads as a service",
    "hang-in-load": "takes connections as a service, and never answers",
    "garbage": "says @@@@",
    "no-answer": "answers completions with 500",
    "slow": "decodes at a fifth of the speed",
    "leak": "takes more and more memory as a service, from its load on",
    "drops-flag": "knows no --jinja, and does not name it either",
    "without-gpu": "names no GPU options, although it was built for CUDA",
}
# So that a build has a number of its own, and no commit is the first.
EARLIER = 5
AUTHOR = "Stand-in <stand-in@example.org>"
FIRST_DAY = 1_750_000_000
DAY = 86400


def make(folder: Path, load_ms: int = 300) -> dict[str, str]:
    """Makes a bare repository in a folder; returns the commits by name: `good`, `better`, and one for each fault.

    The same files and `load_ms` make the same commits. `better`, another good version, is the newest.
    """
    git = ["git", "-C", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    _run([*git, "init", "--quiet", "--bare", "--template=", "--object-format=sha1", "--initial-branch=main"])
    # What public hosts allow: clones without blobs, and a commit by its name alone.
    for key in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        _run([*git, "config", key, "true"])
    (folder / "git-daemon-export-ok").touch()
    names = [*(f"earlier {number}" for number in range(1, EARLIER + 1)), "good", *FAULTS, "better"]
    _run([*git, "fast-import", "--quiet"], b"".join(_imported({name: _files(name, load_ms) for name in names})))
    commits = _run([*git, "rev-list", "--reverse", "main"]).decode().split()
    return dict(list(zip(names, commits, strict=True))[EARLIER:])


def _files(name: str, load_ms: int) -> dict[str, bytes]:
    """The engine as it is in a commit: path -> content."""
    options = json.loads(OPTIONS.read_text())["options"]
    arity = {spelling: option["values"] for option in options for spelling in option["spellings"]}
    return {path.name: path.read_bytes() for path in ENGINE.iterdir()} | {
        "NEWS": f"This is {name}.\n".encode(),
        "help.txt": HELP.read_bytes(),
        "options.inc": "".join(f'{{"{spelling}", {words}}},\n' for spelling, words in arity.items()).encode(),
        "fault.txt": f"{name}\n".encode() if name in FAULTS else b"",
        "load_ms.txt": f"{load_ms}\n".encode(),
    }


def _imported(commits: Mapping[str, Mapping[str, bytes]]) -> Iterator[bytes]:
    """The commits, one after the other, in the language of `git fast-import`."""
    for day, (name, files) in enumerate(commits.items()):
        yield b"commit refs/heads/main\n"
        yield f"committer {AUTHOR} {FIRST_DAY + day * DAY} +0000\n".encode()
        yield _data(f"Stand-in: {name}\n".encode())
        yield b"deleteall\n"
        for path, content in sorted(files.items()):
            yield f"M 100644 inline {path}\n".encode() + _data(content)


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def _run(command: list[str], stdin: bytes = b"") -> bytes:
    """What a git command prints, in an environment that no setting of the user reaches."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(command, input=stdin, env=env, stdout=subprocess.PIPE, check=True).stdout


if __name__ == "__main__":
    print(json.dumps(make(Path(sys.argv[1])), indent=2))
