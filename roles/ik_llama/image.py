"""How the release that is next becomes a container image, too."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation

from moehost import bake, confined, container, images, prove, recipe, toolchain
from moehost.confined import BUILDER
from moehost.images import Base, ImageError, There
from moehost.settings_engine import Engine
from roles.ik_llama.build import SOURCE, checkout, small_model, watch
from roles.ik_llama.facts import BAKERY, ENGINE, IMAGES, PACKAGES, WORKSHOP, Build, Images, Toolchain
from roles.operations import files, packages, refuse, render, unit_options

# Where NVIDIA's images have it.
CUDA = "/usr/local/cuda"


@operation()
def image(engine: Engine) -> Iterator[Any]:
    """
    Have a container image of the release that is next, by the same recipe, and no image of a release that is gone.

    + engine: the settings of the engine, `image` among them
    """
    there, wish = images.parse(host.get_fact(Images)), engine.image
    if there.build.get("commit") != engine.commit:
        # Planning a run that will build it.
        yield StringCommand("grep --quiet", engine.commit, f"{ENGINE}/next/build.json")
        return
    if there.build["cuda"] and not wish.base:
        yield refuse(
            "engine.image.base: the release is built for CUDA, which a root file system made on the node lacks; "
            "name NVIDIA's CUDA image with a compiler, by digest"
        )
        return
    try:
        base = Base(wish.base) if wish.base else images.own_base(there.system, there.archives)
    except ImageError as reason:
        yield refuse(str(reason))
        return
    texts = _texts(there, base, wish.runtime or base.reference)
    made_from = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    release, is_left_alone = there.release, True
    found = there.image(release)
    if not found or found.recipe != made_from:
        is_left_alone = False
        yield from _made(engine, there, base, texts, made_from)
        there = images.parse(host.get_fact(Images))
    if wish.push and not there.is_pushed(release, wish.push):
        is_left_alone = False
        yield _pushed(there, f"{wish.push}:{release}")
    for command in _tidied(there, base):
        is_left_alone = False
        yield command
    if is_left_alone:
        host.noop(f"{images.REPOSITORY}:{release} is there")


def _texts(there: There, base: Base, runtime: str) -> dict[str, str]:
    """The files that decide over an image, by name."""
    build, release = there.build, there.release
    values = {
        "build": {**build, "release": release},
        "base": base.reference,
        "runtime": runtime,
        # What is pinned stays as it is; what was made here once gets what has become of its packages.
        "upgrade": "apt-get -qq --option Dpkg::Use-Pty=0 upgrade && " if runtime.startswith(images.BASES) else "",
        "packages": [*PACKAGES, "python3"],
        "builder": there.builder,
        "user": container.USER,
        "workshop": WORKSHOP,
        "source": SOURCE,
        "folder": f"{WORKSHOP}/builds/{release}",
        "cuda": CUDA if build["cuda"] else None,
        "compiler": Toolchain.commands["compiler"],
        "targets": recipe.targets(build["options"]),
    }
    return {
        "Containerfile": render("ik_llama/Containerfile.j2", **values),
        "build.sh": render("ik_llama/build.j2", recipe=build, targets=recipe.targets(build["options"])),
    }


def _made(engine: Engine, there: There, base: Base, texts: dict[str, str], made_from: str) -> Iterator[Any]:
    """Make the image in a unit of its own, which goes on when the deploy is cut off; the next deploy watches it."""
    release, folder, title = there.release, f"{IMAGES}/{there.release}", f"image {there.release} {made_from}"
    build = host.get_fact(Build, folder=folder, unit=BAKERY)
    if not (build.get("state") == "active" and build.get("release") == title):
        yield from packages._inner(wanted=["podman", *(["mmdebstrap"] if base.sources else [])])
        yield from checkout._inner(url=engine.url, commit=there.build["commit"])
        # A copy: the next deploy may check out another commit while this one is at work.
        yield StringCommand(
            f"systemctl stop {BAKERY} 2>/dev/null; systemctl reset-failed {BAKERY} 2>/dev/null;",
            f"runuser -u {BUILDER} -- mkdir -p {WORKSHOP}/ccache && rm -rf", QuoteString(folder),
            "&& install -d", QuoteString(folder), f"&& cp -a {SOURCE}", QuoteString(f"{folder}/source"),
        )  # fmt: skip
        chain = toolchain.parse(host.get_fact(Toolchain))
        job = bake.Job(
            reference=f"{images.REPOSITORY}:{release}",
            recipe=made_from,
            base=base.reference,
            suite=base.suite,
            sources=list(base.sources),
            chroot=there.is_container,
            jobs=chain.jobs,
            memory_mib=chain.memory_max_mib,
            ccache=f"{WORKSHOP}/ccache",
            build=images.known(there.build, release, base.reference, engine.image.runtime or base.reference),
        )
        contents = texts | {
            "bake.py": Path(bake.__file__).read_text(),
            "prove.py": Path(prove.__file__).read_text(),
            "image.json": json.dumps(asdict(job), indent=2) + "\n",
            "job.json": json.dumps(asdict(_proof(there))) + "\n",
        }
        yield from files._inner(contents={f"{folder}/{each}": text for each, text in contents.items()})
        yield from small_model(f"{folder}/tiny.gguf")
        log = [f"StandardOutput=append:{folder}/build.log", f"StandardError=append:{folder}/build.log"]
        yield StringCommand(
            f"systemd-run --quiet --no-block --unit={BAKERY} --description", QuoteString(title),
            *unit_options([*confined.image(), f"MemoryMax={chain.memory_max_mib}M", *log]),
            "python3", QuoteString(f"{folder}/bake.py"), QuoteString(folder),
        )  # fmt: skip
    yield FunctionCommand(watch, (f"image {release}", folder, BAKERY), {})


def _proof(there: There) -> prove.Job:
    """What is proven in the stage that builds: the same as on the node, as far as that goes without a driver."""
    build, cuda = there.build, there.build["cuda"]
    return prove.Job(
        programs=f"{WORKSHOP}/builds/{there.release}/bin",
        commit=build["commit"],
        build_number=build["build_number"],
        architectures=build["architectures"],
        vnni="avx512_vnni" in build["isa"],
        cuobjdump=f"{CUDA}/bin/cuobjdump" if cuda else None,
        model=f"/{bake.SAID}/tiny.gguf",
        gpu_layers=None,
        driver_stub=f"{CUDA}/lib64/stubs/libcuda.so" if cuda else None,
    )


def _pushed(there: There, address: str) -> StringCommand:
    """Push the image, and note its address and what it was; a note asks no registry, and says which digest it has."""
    made, folder = there.image(there.release), f"{IMAGES}/pushed"
    note, digest = QuoteString(f"{folder}/{there.release}"), f"{folder}/.digest"
    return StringCommand(
        f"install -d {folder} && nice -n 19 podman push --quiet --digestfile {digest}",
        made.id, QuoteString(f"docker://{address}"),
        "&& echo", QuoteString(f"{there.release} {address} {made.id}"), f'"$(cat {digest})" >{folder}/.new',
        f"&& mv -T {folder}/.new", note,
    )  # fmt: skip


def _tidied(there: There, base: Base) -> Iterator[StringCommand]:
    """Take away what belongs to no release any more."""
    if gone := there.superseded(base.reference):
        yield StringCommand("podman rmi", *(QuoteString(each) for each in gone))
    notes = (f"{IMAGES}/pushed/{each}" for each in there.pushed if each not in there.releases)
    if paths := [*notes, *(f"{IMAGES}/{each}" for each in there.leftovers)]:
        yield StringCommand("rm -rf", *(QuoteString(each) for each in paths))
