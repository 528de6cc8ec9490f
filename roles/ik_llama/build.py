"""How an engine is built on the node, proven, and kept as a release."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FileUploadCommand, FunctionCommand, QuoteString, StringCommand, operation

from moehost import confined, prove, recipe, toolchain
from moehost.confined import BUILDER
from moehost.files import sha256_of
from moehost.recipe import Recipe
from moehost.settings_engine import Engine
from moehost.toolchain import Cuda, ToolchainError
from roles.facts import FileStates
from roles.ik_llama.cuda import cuda_toolkit
from roles.ik_llama.facts import ENGINE, PACKAGES, RELEASES, WORKSHOP, Build, Checkout, Releases, Toolchain
from roles.ik_llama.operations import chosen, suite_in_use
from roles.operations import packages, refuse, render, shell, unit_options

SOURCE = f"{WORKSHOP}/source"
UNIT = "moehost-build.service"
SCRIPT = "/run/moehost-build.sh"
MODEL = f"{ENGINE}/proof.gguf"
# A card on which the small model surely has room beside what serves just now.
ROOM_MIB = 2048


@operation()
def checkout(url: str, commit: str) -> Iterator[StringCommand]:
    """
    Have a worktree of exactly this commit, with the whole history.

    + url: of the repository, or its path on the node
    + commit: full hash; a branch is none
    """
    if host.get_fact(Checkout).get("commit") == commit:
        host.noop(f"{commit} is checked out")
        return
    # What is left of a deploy that was cut off would still be at work in this unit.
    yield StringCommand("systemctl stop moehost-checkout.service 2>/dev/null; true")
    yield StringCommand(
        "systemd-run --quiet --wait --pipe --collect --unit=moehost-checkout",
        *unit_options(confined.checkout(WORKSHOP)), "sh -s --", QuoteString(url), commit, SOURCE,
        _stdin=render("ik_llama/checkout.j2"),
    )  # fmt: skip


@operation()
def release(engine: Engine) -> Iterator[Any]:
    """
    Have a release of the engine for this machine, proven, and have it be the next one.

    It is built from the commit by what the node has, so another compiler, CUDA toolkit, processor or card makes
    another release. A build that fails a proof never becomes one.

    + engine: the settings of the engine
    """
    there, chain = host.get_fact(Releases), toolchain.parse(host.get_fact(Toolchain))
    try:
        architectures = toolchain.architectures(chain, engine.cuda, engine.cuda_architectures)
        cuda = toolchain.choose(chain, architectures, engine.cuda_version)
    except ToolchainError as reason:
        yield refuse(f"engine: {reason}")
        return
    made = None
    if not chain.missing and (cuda or not architectures):
        made = recipe.make(engine, chain, cuda, architectures)
    if made and made.release in there["releases"]:
        yield from chosen(made.release, there)
        return

    if chain.missing:
        yield from packages._inner(wanted=PACKAGES, release=suite_in_use())
    if architectures and not cuda:
        yield from cuda_toolkit._inner(
            version=engine.cuda_version, repository=engine.cuda_repository, fingerprint=engine.cuda_key
        )
    yield from checkout._inner(url=engine.url, commit=engine.commit)
    # From here the facts are read after the commands above have run.
    source = host.get_fact(Checkout)
    if source.get("commit") != engine.commit:
        yield refuse(f"{SOURCE} is not what {engine.commit} says; remove it (rm -r {SOURCE}) and deploy again")
        return
    chain = toolchain.parse(host.get_fact(Toolchain))
    cuda = toolchain.choose(chain, architectures, engine.cuda_version)
    if architectures and not cuda:
        found = [f"{each.version} ({toolchain.refusal(each, architectures) or each.path})" for each in chain.cudas]
        yield refuse(f"engine.cuda_version: no CUDA toolkit that will do; on the node: {'; '.join(found) or 'none'}")
        return
    made = recipe.make(engine, chain, cuda, architectures)
    folder = f"{WORKSHOP}/builds/{made.release}"
    yield from _built(made, folder, chain, cuda)
    yield from _installed(made, folder)
    yield from small_model(MODEL)
    layers = (99 if chain.free_vram_mib >= ROOM_MIB else 0) if cuda else None
    job = prove.Job(
        programs=f"{RELEASES}/.{made.release}/bin",
        commit=made.commit,
        build_number=int(source["build_number"]),
        architectures=list(made.architectures),
        vnni=chain.has_vnni,
        cuobjdump=f"{cuda.path}/bin/cuobjdump" if cuda else None,
        model=MODEL,
        gpu_layers=layers,
    )
    identity = {"source": "git", "url": engine.url, "dialect": "ik", "cuda_path": cuda.path if cuda else None}
    yield FunctionCommand(_proven, (made, job, identity), {})
    yield from chosen(made.release, host.get_fact(Releases))
    # ccache keeps what another build of this commit would need.
    yield StringCommand("rm -rf", f"{WORKSHOP}/builds")


def _built(made: Recipe, folder: str, chain: toolchain.Toolchain, cuda: Cuda | None) -> Iterator[Any]:
    """Build in a unit of its own, which goes on when the deploy is cut off; the next deploy watches it."""
    build = host.get_fact(Build, folder=folder, unit=UNIT)
    if build.get("done"):
        return
    if not (build.get("state") == "active" and build.get("release") == made.release):
        # A folder with an empty log, and the script where the builder can't write: a build before this one may have
        # left links.
        yield StringCommand(
            f"systemctl stop {UNIT} 2>/dev/null; systemctl reset-failed {UNIT} 2>/dev/null;",
            f"runuser -u {BUILDER} -- sh -c 'rm -rf \"$0\" && mkdir -p \"$0\" && touch \"$0/build.log\"'",
            QuoteString(folder), f"&& cat >{SCRIPT}",
            _stdin=render("ik_llama/build.j2", recipe=made, targets=recipe.targets(made.options)),
        )  # fmt: skip
        properties = [
            *confined.build(WORKSHOP),
            f"Environment=CCACHE_DIR={WORKSHOP}/ccache CCACHE_MAXSIZE=20G CCACHE_BASEDIR={WORKSHOP}",
            f"MemoryMax={chain.memory_max_mib}M",
            "MemorySwapMax=0",
            f"StandardOutput=append:{folder}/build.log",
            f"StandardError=append:{folder}/build.log",
        ]
        if cuda:
            properties.append(f"Environment=CUDACXX={cuda.path}/bin/nvcc CUDAToolkit_ROOT={cuda.path}")
        yield StringCommand(
            f"systemd-run --quiet --no-block --unit={UNIT} --description={made.release}",
            *unit_options(properties), "sh", SCRIPT, SOURCE, QuoteString(folder), str(chain.jobs),
        )  # fmt: skip
    yield FunctionCommand(watch, (made.release, folder, UNIT), {})


def watch(state: Any, host: Any, title: str, folder: str, unit: str) -> bool:
    """Follow a build to its end, with a line every few seconds; False with the end of its log if it fails."""
    said, last = "", 0.0
    while True:
        build = host.get_fact(Build, folder=folder, unit=unit)
        line = f"{title}: {_describe(build)}"
        if line != said and time.monotonic() - last > 5:
            host.log(line, logger.info)
            said, last = line, time.monotonic()
        if build.get("done"):
            host.log(f"{title}: built in {build['done']} s", logger.info)
            return True
        if build.get("state") not in ("active", "activating"):
            break
        time.sleep(1)
    log = f"{folder}/build.log"
    host.log_styled(
        f"{title} does not build ({build.get('result')}); the end of {log}:", fg="red", log_func=logger.error
    )
    _, tail = shell(host, StringCommand("tail -n 15", QuoteString(log)))
    for line in tail.stdout_lines:
        host.log(f"    {line}", logger.error)
    # It is told, and what the node has built before serves: a failure that nobody takes back would hide the next one.
    shell(host, StringCommand("systemctl reset-failed", QuoteString(unit), "2>/dev/null; true"))
    return False


def _describe(build: dict[str, str]) -> str:
    done, _, total = build.get("steps", "").partition("/")
    if total:
        return f"{100 * int(done) // int(total)} % built ({done} of {total} steps)"
    return build.get("phase") or "begins"


def _installed(made: Recipe, folder: str) -> Iterator[StringCommand]:
    """Put the programs where they will stay, under a name that is no release's."""
    new, parts = f"{RELEASES}/.{made.release}", [f"bin/{target}" for target in recipe.targets(made.options)]
    yield StringCommand(f"rm -rf {new} && mkdir -p {new}/bin")
    # Read with the builder's rights: what it calls a program may be a link to what only root may read.
    yield StringCommand(
        f"for each in {' '.join([*parts, 'configure.log', 'build.log'])}; do",
        f"runuser -u {BUILDER} -- cat {folder}/$each >{new}/$each || exit 1; done; chmod 755 {new}/bin/*",
    )


def small_model(to: str) -> Iterator[Any]:
    """Have the small model of random weights that the proof lets a server load."""
    from moehost import synthetic  # numpy takes a moment, and a run that builds nothing does not need it

    with tempfile.TemporaryDirectory(prefix="moehost-") as local:
        (path,) = synthetic.write(Path(local, "tiny.gguf"), synthetic.Shape())
        if host.get_fact(FileStates, paths=[to]).get(to, [""])[0] != sha256_of(path):
            yield FileUploadCommand(str(path), to, remote_temp_filename=host.get_temp_filename(to))
            yield StringCommand("chmod 644", QuoteString(to))


def _proven(state: Any, host: Any, made: Recipe, job: prove.Job, identity: dict[str, Any]) -> bool:
    """Prove what was built and keep it, or take it away and say what is wrong with it."""
    new, folder = f"{RELEASES}/.{made.release}", f"{WORKSHOP}/builds/{made.release}"
    properties = confined.prove(WORKSHOP, has_cards=job.gpu_layers is not None)
    shell(host, StringCommand("systemctl stop moehost-prove.service 2>/dev/null; true"))
    _, output = shell(
        host,
        StringCommand(
            "systemd-run --quiet --wait --pipe --collect --unit=moehost-prove",
            *unit_options(properties), "python3 -", QuoteString(json.dumps(asdict(job))),
        ),
        _stdin=Path(prove.__file__).read_text(),
    )  # fmt: skip
    try:
        answer = json.loads(output.stdout)
        failure = answer["failure"]
    except (ValueError, KeyError):
        failure = f"the proof itself does not run: {(output.stderr_lines or ['no word from it'])[-1]}"
    if failure:
        host.log_styled(f"{made.release} is no release: {failure}", fg="red", log_func=logger.error)
        shell(host, StringCommand("rm -rf", QuoteString(new), QuoteString(folder)))
        return False
    for proof, finding in answer["proofs"].items():
        host.log(f"{proof}: {finding}", logger.info)
    _, sums = shell(host, StringCommand(f"cd {new}/bin && sha256sum *; runuser -u {BUILDER} -- cat {folder}/done"))
    *lines, seconds = sums.stdout_lines
    build = {
        **identity,
        **asdict(made),
        "version": answer["proofs"]["version"],
        "build_number": job.build_number,
        "duration_s": int(seconds),
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sha256": {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)},
        "proofs": answer["proofs"],
    }
    # The release gets its name when all of it is on the disk.
    kept, _ = shell(
        host,
        StringCommand(
            "cat >", QuoteString(f"{new}/build.json"), "&& sync -f", QuoteString(new),
            "&& rm -rf", QuoteString(f"{RELEASES}/{made.release}"),
            "&& mv -T", QuoteString(new), QuoteString(f"{RELEASES}/{made.release}"),
        ),
        _stdin=json.dumps(build, indent=2) + "\n",
    )  # fmt: skip
    return kept
