"""Sources: the forms an owner writes, what is refused with which mend, the hub's addresses and lists."""

from __future__ import annotations

import re
from typing import Any

import pytest

from moehost.source import (
    FileSource,
    HttpSource,
    HubSource,
    ModelFile,
    check_sha256,
    hub_files,
    model_name,
    parse,
    pin,
    require_safe,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "ab" * 32
OTHER = "cd" * 32
TWO = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("file:///srv/in/m.gguf", FileSource("/srv/in", ("m.gguf",))),
        ("file:///m.gguf", FileSource("/", ("m.gguf",))),
        ("file:m.gguf", FileSource(".", ("m.gguf",))),
        ("file:../a folder/m-00002-of-00002.gguf", FileSource("../a folder", TWO)),
        (
            "https://host.example:8443/a%20b/m.gguf",
            HttpSource("https://host.example:8443/a%20b", ("m.gguf",)),
        ),
        ("https://host.example/m-00002-of-00002.gguf", HttpSource("https://host.example", TWO)),
        ("http://127.0.0.1:80/m.gguf", HttpSource("http://127.0.0.1:80", ("m.gguf",))),
        ("http://[::1]/m.gguf", HttpSource("http://[::1]", ("m.gguf",))),
        ("http://localhost/m.gguf", HttpSource("http://localhost", ("m.gguf",))),
        (f"hf://own/re.po/m.gguf@{COMMIT}", HubSource("own", "re.po", COMMIT, "", ("m.gguf",))),
        (
            f"hf://own/repo/IQ4/x/m-00001-of-00002.gguf@{COMMIT}",
            HubSource("own", "repo", COMMIT, "IQ4/x", TWO),
        ),
        (f"hf://own/repo/IQ4/@{COMMIT.upper()}", HubSource("own", "repo", COMMIT, "IQ4", ())),
        (f"hf://own/repo@{COMMIT}", HubSource("own", "repo", COMMIT, "", ())),
    ],
)
def test_forms(source: str, expected: object) -> None:
    assert parse(source) == expected


def test_revision_may_stand_beside_the_source() -> None:
    assert parse("hf://own/repo/m.gguf", COMMIT) == parse(f"hf://own/repo/m.gguf@{COMMIT}")
    assert parse(f"hf://own/repo/m.gguf@{COMMIT}", COMMIT) == parse(f"hf://own/repo/m.gguf@{COMMIT}")


@pytest.mark.parametrize(
    ("source", "revision", "reason"),
    [
        ("/srv/m.gguf", None, "none of the known forms; write file:///PATH.gguf"),
        ("ftp://host/m.gguf", None, "none of the known forms"),
        ("hf:own/repo/m.gguf", None, "none of the known forms"),
        ("file://host/m.gguf", None, "three slashes"),
        ("file:///srv/folder", None, "name one, any shard will do"),
        ("file:///srv/m x.gguf", None, "rename the file"),
        ("file:///srv/-m.gguf", None, "rename the file"),
        ("file:///srv/m-00003-of-00002.gguf", None, "restore its name"),
        ("file:///srv/m.gguf", COMMIT, "only hf:// sources have a revision"),
        ("http://host.example/m.gguf", None, "write https://"),
        ("http://10.0.0.1/m.gguf", None, "write https://"),
        ("https://host.example/m.gguf?sig=SECRET", None, "write the plain address"),
        ("https://me:SECRET@host.example/m.gguf", None, "remove it"),
        ("https:///m.gguf", None, "not whole"),
        ("https://[::1/m.gguf", None, "write https://HOST/PATH"),
        ("https://host.example:x/m.gguf", None, "write https://HOST/PATH"),
        ("https://host.example/", None, "name one"),
        ("https://host.example/%0a.gguf", None, "rename the file"),
        ("hf://own/repo/m.gguf@main", None, "branches and tags can move"),
        (f"hf://own/repo/m.gguf@{COMMIT[:12]}", None, "40 hex digits"),
        ("hf://own/repo/m.gguf", None, "has no revision; pin"),
        ("hf://own/repo/m.gguf", "v1", "revision 'v1' is no full commit hash"),
        (f"hf://own/repo/m.gguf@{COMMIT}", "f" * 40, "in one place"),
        (f"hf://own@{COMMIT}", None, "names no repository"),
        (f"hf://own/../m.gguf@{COMMIT}", None, "no part of a path"),
        (f"hf://own//m.gguf@{COMMIT}", None, "no part of a path"),
        (f"hf://own/repo/a?b/m.gguf@{COMMIT}", None, "no part of a path"),
    ],
)
def test_refusals(source: str, revision: str | None, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        parse(source, revision)
    assert "\n" not in str(caught.value)
    if "query" in str(caught.value) or "password" in str(caught.value):
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".incoming", "a/b", "..", "a b", "-a", "a\n"])
def test_names_that_are_no_folder(name: str) -> None:
    with pytest.raises(ValueError, match="model name"):
        model_name(name)


def test_addresses() -> None:
    source = parse(f"hf://own/repo/my folder/m-00001-of-00002.gguf@{COMMIT}")
    assert isinstance(source, HubSource)
    base = "https://hub.example"
    assert source.tree_url(base + "/") == f"{base}/api/models/own/repo/tree/{COMMIT}/my%20folder"
    assert source.resolve_url(base, TWO[1]) == f"{base}/own/repo/resolve/{COMMIT}/my%20folder/{TWO[1]}"
    root = parse(f"hf://own/repo@{COMMIT}")
    assert isinstance(root, HubSource)
    assert root.tree_url(base) == f"{base}/api/models/own/repo/tree/{COMMIT}"
    assert root.resolve_url(base, "m.gguf") == f"{base}/own/repo/resolve/{COMMIT}/m.gguf"
    web = parse("https://host.example/x/m-00001-of-00002.gguf")
    assert isinstance(web, HttpSource)
    assert web.url(TWO[1]) == f"https://host.example/x/{TWO[1]}"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "https://host/a b", "https://host/\tx", "http://host/", ""])
def test_unsafe_addresses(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        require_safe(url)


def test_https_needs_every_checksum() -> None:
    source = parse(f"https://host.example/{TWO[0]}")
    check_sha256(source, {TWO[0]: SHA256, TWO[1]: SHA256})
    with pytest.raises(ValueError, match=rf"no sha256 for {TWO[1]}; .* write sha256 = {{'{TWO[1]}': "):
        check_sha256(source, {TWO[0]: SHA256})
    with pytest.raises(ValueError, match=rf"no sha256 for {TWO[0]} and 1 more"):
        check_sha256(source, {})


def test_other_sources_may_have_checksums() -> None:
    source = parse("file:///srv/m.gguf")
    check_sha256(source, {})
    check_sha256(source, {"m.gguf": SHA256})
    with pytest.raises(ValueError, match=r"no such file; it has m[.]gguf"):
        check_sha256(source, {"n.gguf": SHA256})
    with pytest.raises(ValueError, match="not 64 lower-case hex digits"):
        check_sha256(source, {"m.gguf": "abc"})
    check_sha256(parse(f"hf://own/repo/folder@{COMMIT}"), {"whatever.gguf": SHA256})  # its names are not known yet


def test_pinning() -> None:
    files = [ModelFile("a.gguf", 1, SHA256), ModelFile("b.gguf", 2, None)]
    assert pin(files, {"b.gguf": OTHER}) == (ModelFile("a.gguf", 1, SHA256), ModelFile("b.gguf", 2, OTHER))
    with pytest.raises(ValueError, match="the source has"):
        pin(files, {"a.gguf": OTHER})
    with pytest.raises(ValueError, match=r"no such file; it has a[.]gguf and 1 more"):
        pin(files, {"c.gguf": OTHER})


def entry(path: str, size: int = 10, sha256: str | None = SHA256) -> dict[str, Any]:
    """One entry as the hub lists it: the outer size and oid are git's, which may be those of a pointer."""
    lfs = {"oid": sha256, "size": size, "pointerSize": 134} if sha256 else None
    return {"type": "file", "path": path, "size": size, "oid": "0" * 40} | ({"lfs": lfs} if lfs else {})


FOLDER = parse(f"hf://own/repo/q@{COMMIT}")
SHARD = parse(f"hf://own/repo/q/{TWO[1]}@{COMMIT}")


def listed(source: object, *entries: Any) -> tuple[ModelFile, ...]:
    assert isinstance(source, HubSource)
    return hub_files(source, entries)


def test_list_of_a_folder() -> None:
    entries = [
        {"type": "directory", "path": "q/deeper", "size": 0, "oid": "1"},
        entry("q/README.md", sha256=None),
        entry(f"q/{TWO[1]}", 20, OTHER),
        entry(f"q/{TWO[0]}"),
        entry("other/m.gguf"),
    ]
    expected = (ModelFile(TWO[0], 10, SHA256), ModelFile(TWO[1], 20, OTHER))
    assert listed(FOLDER, *entries) == listed(SHARD, *entries) == expected


def test_list_without_large_file_storage() -> None:
    assert listed(FOLDER, entry("q/m.gguf", 7, None)) == (ModelFile("m.gguf", 7, None),)


@pytest.mark.parametrize(
    ("source", "entries", "reason"),
    [
        (FOLDER, [], "holds no .gguf file; name one"),
        (
            FOLDER,
            [entry("q/a.gguf"), entry("q/mmproj-b.gguf")],
            "holds 2 models (a.gguf, mmproj-b.gguf); name one",
        ),
        (FOLDER, [entry(f"q/{TWO[0]}")], f"the folder lacks {TWO[1]}; correct"),
        (SHARD, [entry("q/other.gguf")], f"the folder lacks {TWO[0]} and 1 more; correct"),
        (FOLDER, [entry("q/bad name.gguf")], "rename the file"),
        (FOLDER, ["text"], "is not understood"),
        (FOLDER, [{"path": "q/a.gguf"}], "is not understood"),
        (FOLDER, [entry("q/a.gguf", sha256="sha256:" + SHA256)], "is not understood"),
    ],
)
def test_list_that_holds_no_such_model(source: object, entries: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        listed(source, *entries)
