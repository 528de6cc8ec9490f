"""A node that should have an image: what its facts say, and what a run writes there."""

import json
from importlib import import_module

import pytest
from pyinfra.facts.deb import DebPackages

from moehost import settings
from roles.facts import FileStates, MissingPackages
from roles.ik_llama.facts import Build, Checkout, Images, Toolchain
from roles.ik_llama.image import image
from tests.operations.plain import in_turn, play

COMMIT = "8337e4cd3861406fc04e0854b1409cd1b027fbc9"
RELEASE = "8337e4cd3861-b1f28538"
FOLDER = f"/var/lib/moehost-image/{RELEASE}"
CUDA = f"docker.io/nvidia/cuda@sha256:{'1' * 64}"
RUNTIME = f"docker.io/nvidia/cuda@sha256:{'2' * 64}"
BUILD = {
    "source": "git",
    "dialect": "ik",
    "url": "https://git.example/ik",
    "commit": COMMIT,
    "options": ["GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF"],
    "compiler": "gcc 14.2.0",
    "isa": ["avx2", "avx512_vnni"],
    "cuda": None,
    "architectures": [],
    "version": "4840 (8337e4cd3)",
    "build_number": 4840,
}
ON_CUDA = BUILD | {"options": ["GGML_CUDA=ON"], "cuda": "12.9.86", "architectures": ["120"]}
TEXTS = {
    "next": f"{RELEASE}\n",
    "build": json.dumps(BUILD),
    "releases": f"{RELEASE}\n",
    "images": "",
    "pushed": "",
    "leftovers": "",
    "system": "ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME=Debian\n",
    "archives": "trixie http://mirror.home.arpa/debian/ Debian\n",
    "builder": "995:994\n",
    "container": "none\n",
}
TOOLCHAIN = {
    "compiler": "gcc 14.2.0\n",
    "missing": "",
    "nvcc": "",
    "cards": "",
    "pci": "",
    "cpu_flags": "flags : avx2\n",
    "cores": "16\n",
    "available_kib": "MemAvailable: 41943040 kB\n",
}


def listed(name, recipe="", image_id="id-1"):
    """An image as Podman lists it."""
    return {"Id": image_id, "Names": [name], "Labels": {"moehost.recipe": recipe}, "Containers": 0}


def run(*states, build=None, missing=(), checked_out=COMMIT, **wish):
    """The commands and noops on a node whose images are in these states, one after the other."""
    facts = {
        Images: in_turn(*({**TEXTS, **state} for state in states or ({},))),
        Build: build or {},
        MissingPackages: missing if callable(missing) else list(missing),
        Checkout: {"commit": checked_out},
        Toolchain: TOOLCHAIN,
        FileStates: {},
        DebPackages: {},
    }
    engine = settings.read({"engine": {"url": "https://git.example/ik", "commit": COMMIT, "image": wish}}).engine
    with pytest.MonkeyPatch.context() as patch:
        # It takes a moment to write, and its upload has no words.
        patch.setattr(import_module("roles.ik_llama.image"), "small_model", lambda to: [f"upload {to}"])
        return play(image, facts, engine=engine)


def texts(commands):
    """The files that a run writes, by name."""
    written = (each for each in commands if isinstance(each, dict) and "_stdin" in each)
    return {each["command"].rpartition("/")[2]: each["_stdin"] for each in written}
