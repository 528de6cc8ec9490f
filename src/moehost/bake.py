"""Makes the container image of a release: the program that a node runs, and what it is told.

    python3 bake.py FOLDER      0: the image has its name; 1: it has not, and why

One file, standard library only. FOLDER is the context of the Containerfile in it, and holds `image.json` (see `Job`).
The name is given last: whatever is cut off leaves no image that is half made.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASES = "localhost/moehost/base"
# An `https` mirror needs it before apt can fetch anything.
INCLUDE = "ca-certificates"
# What an image says of itself in its labels, beside its build.json.
LABELS = ("release", "commit", "build_number", "version", "options", "compiler", "cuda", "architectures")
# Where the stage `build` says what it has seen.
SAID = "moehost"


class NotMade(Exception):
    """Why there is no image, in one line."""


@dataclass(frozen=True)
class Job:
    """One image to make.

    + reference: the name that it gets
    + recipe: hash of what it is made from, kept in a label
    + base: image that it is built in
    + suite, sources: what the base is made from, suite and apt's lines; empty for one that is pulled
    + chroot: whether the node can't start containers, being one itself
    + jobs, memory_mib: compilers at once, and what they may use
    + ccache: folder of the node's ccache, which is read and not written
    + build: what is known of the build before it begins, for build.json
    """

    reference: str
    recipe: str
    base: str
    suite: str
    sources: list[str]
    chroot: bool
    jobs: int
    memory_mib: int
    ccache: str
    build: dict[str, Any]


def build_json(job: Job, said: Mapping[str, str], now: float) -> dict[str, Any]:
    """The image's own build.json: what is known of the release, and what the stage `build` says of itself.

    + said: texts of that stage, see `_said`
    """
    proofs = json.loads(said["answer.json"])["proofs"]
    cuda = re.search(r"\bV(\d+[.]\d+[.]\d+)", said["nvcc"])
    sums = (line.split(maxsplit=1) for line in said["sums"].splitlines())
    # A server that could not be started said nothing; the commit and its number are the release's.
    version = proofs["version"] if proofs["version"][0].isdigit() else job.build["version"]
    return {
        **job.build,
        "version": version,
        "compiler": said["compiler"].strip(),
        "cuda": cuda[1] if cuda else None,
        "duration_s": int(said["seconds"]),
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "sha256": {name: digest for digest, name in sums},
        "proofs": proofs,
    }


def labels(build: Mapping[str, Any], recipe: str) -> dict[str, str]:
    """The labels of an image: texts of its build.json as they are, and JSON for the rest.

    + build: the build.json
    + recipe: hash of what the image is made from
    """
    values = {f"moehost.{key}": build[key] for key in LABELS} | {
        "moehost.recipe": recipe,
        "org.opencontainers.image.revision": build["commit"],
        "org.opencontainers.image.source": build["url"],
        "org.opencontainers.image.version": build["version"],
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def make(job: Job, folder: Path) -> None:
    """Make the image, stage by stage; raises NotMade at the first that fails."""
    _clean()
    if job.sources and subprocess.run(["podman", "image", "exists", job.base]).returncode:
        _make_base(job, folder)
    _say(f"gets {job.base} and packages")
    for stage in ("tools", "runtime"):
        _stage(job, folder, stage, network=True)
    # From here on without a network, like the native build.
    _say("builds")
    options = [f"--volume={job.ccache}:/ccache:ro", f"--build-arg=JOBS={job.jobs}"]
    _stage(job, folder, "build", *options)
    build = build_json(job, _said(folder), time.time())
    (folder / "build.json").write_text(json.dumps(build, indent=2) + "\n")
    _say("puts the image together")
    options += [f"--label={key}={value}" for key, value in labels(build, job.recipe).items()]
    _stage(job, folder, "final", *options, f"--tag={job.reference}")
    _say(f"{job.reference} is made")


def _make_base(job: Job, folder: Path) -> None:
    _say(f"makes {job.base}")
    archive = folder / "base.tar"
    sources = [_without_list(line) for line in job.sources]
    mmdebstrap = ["mmdebstrap", "--variant=minbase", f"--include={INCLUDE}", job.suite, str(archive), *sources]
    _run(mmdebstrap, "mmdebstrap can't make a root file system", {"TMPDIR": str(folder)})
    podman = ["podman", "import", "--quiet", "--change=LABEL moehost.stage=base", str(archive), job.base]
    _run(podman, "podman can't import the root file system")
    archive.unlink()


def _without_list(source: str) -> str:
    """A source whose mirrors stand in a file of the node, as in Debian's cloud images, with the first of them."""

    def first(match: re.Match[str]) -> str:
        return Path(match[1].rstrip("/")).read_text().split()[0]

    return re.sub(r"mirror[+]file:(/\S+)", first, source)


def _stage(job: Job, folder: Path, stage: str, *options: str, network: bool = False) -> None:
    """Build a stage of the Containerfile; those before it come from Podman's cache."""
    command = ["podman", "build", f"--target={stage}", f"--iidfile={folder}/{stage}.id", *options]
    if job.chroot:
        command.append("--isolation=chroot")
        for name in ("nofile", "nproc"):
            # This process's own limits: Podman's defaults are refused where limits can't be raised.
            soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
            command.append(f"--ulimit={name}={soft}:{hard}")
        if not network:
            # Without containers `--network=none` means nothing.
            command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    else:
        # A container leaves this unit's control group, so it is told its limits.
        memory = f"{job.memory_mib}m"
        command += [f"--memory={memory}", f"--memory-swap={memory}", "--cpu-shares=10"]
        command.append(f"--network={'host' if network else 'none'}")
    _run([*command, str(folder)], f"the stage {stage} of the image fails")


def _said(folder: Path) -> dict[str, str]:
    """What the stage `build` wrote: `answer.json` of the proof, `compiler`, `nvcc`, `sums`, `seconds`."""
    image = (folder / "build.id").read_text().strip()
    mounted = subprocess.run(["podman", "image", "mount", image], check=True, stdout=subprocess.PIPE, text=True)
    try:
        names = ("answer.json", "compiler", "nvcc", "sums", "seconds")
        return {name: _text(Path(mounted.stdout.strip(), SAID, name)) for name in names}
    finally:
        subprocess.run(["podman", "image", "unmount", image], check=True, stdout=subprocess.DEVNULL)


def _text(path: Path) -> str:
    # A link in there would lead to a file of this node.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
        return file.read()


def _run(command: list[str], problem: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command and pass on what it says; raises NotMade with its reason if it names one."""
    reason = ""
    env = {**os.environ, **(environment or {})}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env
    ) as process:
        for line in process.stdout or ():
            # "[2/3] STEP" looks like a step of Ninja to those who watch the log.
            print(re.sub(r"^\[\d+/\d+\] (?=STEP|COMMIT)", "", line), end="", flush=True)
            if line.startswith('{"proofs"'):
                reason = json.loads(line)["failure"] or ""
            elif line.startswith("moehost: "):
                reason = line.removeprefix("moehost: ").strip()
    if process.returncode:
        raise NotMade(f"{problem}: {reason or f'exit status {process.returncode}'}")


def _clean() -> None:
    """Remove what builds leave: stages without a name, and containers of builds that were killed."""
    listing = subprocess.run(
        ["podman", "ps", "--all", "--external", "--format={{.ID}} {{.Image}} {{.Command}}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    for line in listing.splitlines():
        match line.split():
            case [container, image, "buildah"] if image.startswith(f"{BASES}:"):
                subprocess.run(["podman", "rm", "--force", container], check=True)
    prune = ["podman", "image", "prune", "--force", "--external", "--filter=label=moehost.stage"]
    subprocess.run(prune, check=True, stdout=subprocess.DEVNULL)


def _say(line: str) -> None:
    print(f"== {line}", flush=True)


def main(folder: Path) -> int:
    """Make the image of a folder, and clean up behind it whatever comes."""
    started = time.monotonic()
    job = Job(**json.loads((folder / "image.json").read_text()))
    try:
        make(job, folder)
    except (NotMade, OSError, subprocess.CalledProcessError) as reason:
        print(f"no image: {reason}", flush=True)
        return 1
    finally:
        _clean()
    (folder / "done").write_text(f"{time.monotonic() - started:.0f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
