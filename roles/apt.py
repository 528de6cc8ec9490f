"""How a node gets packages from elsewhere than its distribution."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from moehost.apt import AptSource, conflicts
from roles.facts import SourceState
from roles.operations import file_state, files, packages, refuse, render


@operation()
def apt_source(source: AptSource) -> Iterator[Any]:
    """
    Have a source for apt, whose key is checked before it gets in.

    The package lists are not read here: the operation `packages` does that when it installs something.

    + source: what apt is told of it
    """
    # The preferences come first, so that nothing is taken from the source before they say what may be.
    contents = {source.preferences_path: source.preferences} if source.preferences else {}
    contents[source.path] = render("apt/source.j2", source=source)
    state = host.get_fact(
        SourceState,
        keyring=source.keyring,
        paths=[source.preferences_path, source.path],
        uri=source.uri.rstrip("/"),
    )
    found = state["files"]
    if others := conflicts(source, state["naming"]):
        yield refuse(
            f"{', '.join(others)}: names {source.uri} with another key than moehost would, and then apt reads no "
            "source at all; remove it (`dpkg -S` says what package has it, e.g. cuda-keyring), or install from it "
            "yourself"
        )
        return
    if state["keys"] != [source.fingerprint] or found.get(source.keyring, [])[1:] != ["644", "root:root"]:
        yield from packages._inner(wanted=["ca-certificates", "curl", "gpg"])
        yield StringCommand(
            "sh -s --", QuoteString(source.key_url), source.fingerprint, source.keyring,
            _stdin=render("apt/fetch-key.j2"),
        )  # fmt: skip
    if not source.preferences and source.preferences_path in found:
        yield StringCommand("rm", source.preferences_path)
    if any(found.get(path) != file_state(text) for path, text in contents.items()):
        yield from files._inner(contents=contents)
    else:
        host.noop(f"apt has {source.uri}")
