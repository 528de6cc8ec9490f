"""The container images of a node: what there is, what there should be, and what each is made from.

`bake` is the program that makes one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moehost import os_release
from moehost.bake import BASES, INCLUDE

REPOSITORY = "localhost/moehost/ik_llama"
# Keyring and components of the distributions that a base can be made of.
DISTRIBUTIONS = {
    "debian": ("/usr/share/keyrings/debian-archive-keyring.gpg", "main"),
    # ninja and ccache are in `universe`.
    "ubuntu": ("/usr/share/keyrings/ubuntu-archive-keyring.gpg", "main universe"),
}


class ImageError(ValueError):
    """Why no image can be made: one line that says what, where and how to mend it."""


@dataclass(frozen=True)
class Made:
    """An image that is there.

    + reference: one of its names
    + id: its own name, a hash of it
    + recipe: hash of what it was made from, empty for a base
    + is_used: whether a container uses it
    """

    reference: str
    id: str
    recipe: str
    is_used: bool


@dataclass(frozen=True)
class There:
    """What a node has.

    + release, build: the release that is next, and its build.json
    + releases: names of all releases
    + images: those of moehost, bases included
    + pushed: address and id of what was pushed, by release
    + leftovers: folders of builds that are over
    + system: fields of os-release
    + archives: suite and address of apt's archives, first one first
    + builder: account that builds, as numbers
    + is_container: whether the node is one
    """

    release: str
    build: dict[str, Any]
    releases: tuple[str, ...]
    images: tuple[Made, ...]
    pushed: dict[str, tuple[str, str]]
    leftovers: tuple[str, ...]
    system: dict[str, str]
    archives: tuple[tuple[str, str], ...]
    builder: str
    is_container: bool

    def image(self, release: str) -> Made | None:
        """The image of a release."""
        return next((each for each in self.images if each.reference == f"{REPOSITORY}:{release}"), None)

    def is_pushed(self, release: str, repository: str) -> bool:
        """Whether the image of a release, as it is now, was pushed there."""
        made = self.image(release)
        return made is not None and self.pushed.get(release) == (f"{repository}:{release}", made.id)

    def superseded(self, base: str) -> list[str]:
        """The images of releases that are gone, and the bases other than this one; none that a container uses."""
        wanted = {base, *(f"{REPOSITORY}:{each}" for each in self.releases)}
        return [each.reference for each in self.images if each.reference not in wanted and not each.is_used]


def parse(texts: Mapping[str, str]) -> There:
    """What the fact `roles.ik_llama.facts.Images` reads, by its keys; what is missing on the node is empty."""
    pushed = (line.split() for line in texts["pushed"].splitlines())
    return There(
        release=texts["next"].strip(),
        build=json.loads(texts["build"] or "{}"),
        releases=tuple(texts["releases"].split()),
        images=tuple(dict.fromkeys(_images(json.loads(texts["images"] or "[]")))),
        pushed={release: (address, image) for release, address, image, *_ in pushed},
        leftovers=tuple(texts["leftovers"].split()),
        system=os_release.fields(texts["system"]),
        archives=tuple(_archives(texts["archives"])),
        builder=texts["builder"].strip(),
        is_container=texts["container"].strip() not in ("", "none"),
    )


def _images(listing: Iterable[Mapping[str, Any]]) -> Iterable[Made]:
    # An image has an entry for each of its names, and each entry has all of them.
    for each in listing:
        for name in each.get("Names") or ():
            if name.startswith((f"{REPOSITORY}:", f"{BASES}:")):
                recipe = (each.get("Labels") or {}).get("moehost.recipe", "")
                yield Made(name, each["Id"], recipe, bool(each.get("Containers")))


def _archives(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        suite, address, *origin = line.split()
        # Somebody else's archive may have a suite of the same name; without package lists nobody says whose it is.
        if " ".join(origin) in ("Debian", "Ubuntu", "", "$(ORIGIN)"):
            yield suite, address


@dataclass(frozen=True)
class Base:
    """An image to build in.

    + reference: its name
    + suite, sources: for one that is made on the node: the suite, and apt's lines; empty for one that is pulled
    """

    reference: str
    suite: str = ""
    sources: tuple[str, ...] = ()


def own_base(system: Mapping[str, str], archives: Iterable[tuple[str, str]]) -> Base:
    """The base that a node makes of its own distribution; a tag names what it is made from, not where that lies.

    + system: fields of its os-release
    + archives: suite and address of each of its archives, first one first

    Raises ImageError where there is none.
    """
    suite = system.get("VERSION_CODENAME", "")
    keyring, components = DISTRIBUTIONS.get(system.get("ID", ""), ("", ""))
    found = dict(reversed([*archives]))
    suites = [name for name in (suite, f"{suite}-updates", f"{suite}-security") if name in found]
    if not keyring or suite not in suites:
        what = system.get("PRETTY_NAME", "this system")
        raise ImageError(
            f"engine.image.base: no root file system can be made on {what}, apt has no mirror of "
            f"{suite or 'its suite'} there; name an image by digest"
        )
    recipe = json.dumps([suites, components, INCLUDE])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    lines = (f"deb [signed-by={keyring}] {found[name]} {name} {components}" for name in suites)
    return Base(f"{BASES}:{suite}-{digest}", suite, tuple(lines))


def known(native: Mapping[str, Any], release: str, base: str, runtime: str) -> dict[str, Any]:
    """What is known of an image's build before it begins.

    + native: build.json of the release that it is made for
    + base, runtime: images that it is built in and put on
    """
    keys = ("source", "dialect", "url", "commit", "options", "isa", "architectures", "build_number", "version")
    # An image leaves the node: a password in the address does not.
    url = re.sub(r"://[^/@]*@", "://", native["url"])
    return {**{key: native[key] for key in keys}, "url": url, "release": release, "base": base, "runtime": runtime}
