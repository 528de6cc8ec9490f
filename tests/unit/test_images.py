"""Images of a node: what is there, what belongs to no release any more, and what a base is made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moehost.images import Base, ImageError, There, known, own_base, parse

TEXTS = {
    "next": "new-1\n",
    "build": '{"commit": "abc"}\n',
    "releases": "old-1\nnew-1\n",
    "images": "",
    "pushed": "new-1 home.arpa/ik:new-1 id-new sha256:f00\n",
    "leftovers": "old-1\n",
    "system": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_CODENAME=trixie\n\n',
    "archives": "trixie http://a.example/debian/ Debian\ntrixie-security http://a.example/sec/ Debian\n",
    "builder": "995:994\n",
    "container": "podman\n",
}
DEBIAN = {"ID": "debian", "VERSION_CODENAME": "trixie", "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def listed(names: list[str], image: str = "id-new", recipe: str | None = "r1", containers: int = 0) -> dict[str, Any]:
    """An entry of `podman images --format json`; an image has no labels where no recipe is given."""
    labels = {"moehost.recipe": recipe} if recipe else None
    return {"Id": image, "Names": names, "Labels": labels, "Containers": containers}


def there(*images: dict[str, Any], **texts: str) -> There:
    """A node with these images."""
    return parse({**TEXTS, "images": json.dumps(images), **texts})


def test_a_node_that_says_nothing_has_nothing() -> None:
    assert parse(dict.fromkeys(TEXTS, "")) == There("", {}, (), (), {}, (), {}, (), "", False)


def test_what_a_node_says() -> None:
    found = there()
    assert (found.release, found.build, found.releases) == ("new-1", {"commit": "abc"}, ("old-1", "new-1"))
    assert found.pushed == {"new-1": ("home.arpa/ik:new-1", "id-new")}
    assert (found.leftovers, found.builder, found.is_container) == (("old-1",), "995:994", True)
    assert found.system == DEBIAN
    assert not there(container="none").is_container


def test_an_image_with_several_names_is_found_by_ours() -> None:
    names = ["docker.io/me/x:1", "localhost/moehost/ik_llama:new-1", "localhost/moehost/ik_llama:old-1"]
    # Podman has an entry for each name, and all names in each.
    found = there(*[listed(names)] * 3)
    assert [each.reference for each in found.images] == names[1:]
    made = found.image("new-1")
    assert made is not None
    assert (made.id, made.recipe, made.is_used) == ("id-new", "r1", False)
    assert found.image("other") is None


@pytest.mark.parametrize("name", ["docker.io/other/moehost/ik_llama:new-1", "localhost/moehost/ik_llama-x:new-1"])
def test_images_of_others_are_not_ours(name: str) -> None:
    assert there(listed([name])).images == ()


def test_an_image_without_a_name_or_labels_is_no_error() -> None:
    assert there(listed([]), {"Id": "x", "Names": None}).images == ()
    assert there(listed(["localhost/moehost/base:x"], recipe=None)).images[0].recipe == ""


@pytest.mark.parametrize(
    ("image", "pushed", "done"),
    [
        ("id-new", "new-1 home.arpa/ik:new-1 id-new sha256:f00", True),
        ("id-new", "new-1 home.arpa/ik:new-1 id-before sha256:f00", False),
        ("id-new", "new-1 elsewhere.arpa/ik:new-1 id-new sha256:f00", False),
        ("id-new", "old-1 home.arpa/ik:old-1 id-new sha256:f00", False),
        ("id-new", "", False),
    ],
)
def test_what_was_pushed_is_this_image_under_this_address(image: str, pushed: str, done: bool) -> None:
    found = there(listed(["localhost/moehost/ik_llama:new-1"], image), pushed=pushed)
    assert found.is_pushed("new-1", "home.arpa/ik") is done


def test_nothing_is_pushed_where_there_is_no_image() -> None:
    assert not there().is_pushed("new-1", "home.arpa/ik")


def test_images_of_gone_releases_and_other_bases_are_superseded() -> None:
    ours = ["localhost/moehost/ik_llama:new-1", "localhost/moehost/ik_llama:old-1", "localhost/moehost/base:now"]
    gone = ["localhost/moehost/ik_llama:gone-1", "localhost/moehost/base:before"]
    found = there(*(listed([each]) for each in (*ours, *gone, "localhost/others:1")))
    assert found.superseded("localhost/moehost/base:now") == gone


def test_an_image_that_a_container_uses_stays() -> None:
    found = there(listed(["localhost/moehost/ik_llama:gone-1"], containers=1))
    assert found.superseded("localhost/moehost/base:now") == []


def test_a_base_of_debian() -> None:
    base = own_base(DEBIAN, [("trixie", "http://a/"), ("trixie-security", "http://s/"), ("bookworm", "http://b/")])
    assert base.reference.startswith("localhost/moehost/base:trixie-")
    assert base.suite == "trixie"
    assert base.sources == (
        f"deb [signed-by={KEYRING}] http://a/ trixie main",
        f"deb [signed-by={KEYRING}] http://s/ trixie-security main",
    )


def test_a_base_of_ubuntu_has_the_component_of_ninja() -> None:
    (source,) = own_base({"ID": "ubuntu", "VERSION_CODENAME": "noble"}, [("noble", "http://u/")]).sources
    assert source == "deb [signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg] http://u/ noble main universe"


def test_the_first_archive_of_a_suite_counts() -> None:
    (source,) = own_base(DEBIAN, [("trixie", "http://first/"), ("trixie", "http://second/")]).sources
    assert " http://first/ " in source


def test_another_mirror_makes_no_other_base_and_another_suite_does() -> None:
    one = own_base(DEBIAN, [("trixie", "http://a/")])
    assert own_base(DEBIAN, [("trixie", "http://b/")]).reference == one.reference
    assert own_base(DEBIAN, [("trixie", "http://a/"), ("trixie-updates", "http://a/")]).reference != one.reference


@pytest.mark.parametrize(
    ("system", "archives", "what"),
    [
        (DEBIAN, [], "on Debian GNU/Linux 13 (trixie), apt has no mirror of trixie there"),
        (
            {"ID": "fedora", "PRETTY_NAME": "Fedora"},
            [("41", "http://f/")],
            "on Fedora, apt has no mirror of its suite",
        ),
        ({}, [], "on this system"),
    ],
)
def test_no_base_without_a_mirror(system: dict[str, str], archives: list[tuple[str, str]], what: str) -> None:
    with pytest.raises(ImageError, match=r"engine.image.base: no root file system can be made") as caught:
        own_base(system, archives)
    assert what in str(caught.value)


@pytest.mark.parametrize("origin", [" Debian", "", " $(ORIGIN)"])
def test_archives_of_the_distribution(origin: str) -> None:
    assert there(archives=f"trixie http://a/{origin}\n").archives == (("trixie", "http://a/"),)


def test_somebody_else_s_archive_of_the_same_suite_is_left_out() -> None:
    text = "trixie http://docker.example/ Docker\ntrixie http://n.example/ Node Source\ntrixie http://a/ Debian\n"
    assert there(archives=text).archives == (("trixie", "http://a/"),)


def test_a_base_that_is_pulled_is_made_of_nothing() -> None:
    assert Base("docker.io/nvidia/cuda@sha256:0").sources == ()


NATIVE: dict[str, Any] = {
    "source": "git",
    "dialect": "ik",
    "url": "https://git.example/ik",
    "commit": "c" * 40,
    "options": ["GGML_NATIVE=ON"],
    "isa": ["avx2"],
    "architectures": ["120"],
    "build_number": 4840,
    "version": "4840 (ccccccccc)",
    "compiler": "gcc 14.2.0",
    "sha256": {"llama-server": "0"},
    "proofs": {"answer": "8 tokens on the cards"},
}


def test_what_is_known_before_a_build_is_what_it_shares_with_the_release() -> None:
    found = known(NATIVE, "new-1", "base", "runtime")
    assert {key: found[key] for key in ("commit", "options", "isa", "architectures", "build_number")} == {
        key: NATIVE[key] for key in ("commit", "options", "isa", "architectures", "build_number")
    }
    assert (found["release"], found["base"], found["runtime"]) == ("new-1", "base", "runtime")
    assert not {"compiler", "sha256", "proofs"} & set(found)


@pytest.mark.parametrize("url", ["https://git.example/ik", "https://me:secret@git.example/ik"])
def test_a_password_in_the_address_stays_on_the_node(url: str) -> None:
    assert known({**NATIVE, "url": url}, "new-1", "base", "runtime")["url"] == "https://git.example/ik"
