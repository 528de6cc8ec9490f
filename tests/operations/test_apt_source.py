"""A source for apt: what is written in which order, what is refused, and the program that fetches a key."""

import subprocess

import pytest

from moehost.apt import AptSource
from roles.apt import apt_source
from roles.facts import FileStates, MissingPackages, SourceState
from roles.operations import file_state, render
from tests.operations.plain import play

KEY, OTHER_KEY = "02182E60104FCDC26EAE1B8597A5D4CB8793F200", "EB693B3035CD5710E231E123A4B469963BF863CC"
URL = "https://apt.home.arpa/key.asc"
PREFERENCES = "Package: *\nPin: origin apt.home.arpa\nPin-Priority: 100\n"
SOURCE = AptSource("a", "https://apt.home.arpa/debian", "trixie", ("main", "contrib"), URL, KEY, PREFERENCES)
TEXT = """\
# Managed by moehost.
Types: deb
URIs: https://apt.home.arpa/debian
Suites: trixie
Components: main contrib
Signed-By: /usr/share/keyrings/moehost-a.gpg
"""
KEYRING = {SOURCE.keyring: ["0" * 64, "644", "root:root"]}
WHOLE = KEYRING | {SOURCE.preferences_path: file_state(PREFERENCES), SOURCE.path: file_state(TEXT)}
NAMING = {SOURCE.path: TEXT}
FETCHED = f"sh -s -- {URL} {KEY} {SOURCE.keyring}"


def run(files, keys=(KEY,), naming=None, source=SOURCE):
    """What is done on a node that has these files, keys in the keyring, and texts that name the address."""
    facts = {
        SourceState: {"files": files, "keys": list(keys), "naming": naming or {}},
        FileStates: files,
        MissingPackages: [],
    }
    return play(apt_source, facts, source=source)


def written(commands):
    """Where each of the commands puts something, and the text of it."""
    return [(each["command"].split()[-1], each["_stdin"]) for each in commands]


def test_a_source_that_is_there_is_left_alone():
    assert run(WHOLE, naming=NAMING) == ([], ["apt has https://apt.home.arpa/debian"])


def test_a_fresh_node_gets_key_preferences_and_source_in_this_order():
    (key, *rest), _ = run({}, keys=())
    assert key == {"command": FETCHED, "_stdin": render("apt/fetch-key.j2")}
    assert written(rest) == [(SOURCE.preferences_path, PREFERENCES), (SOURCE.path, TEXT)]


def test_what_looks_at_the_key_is_installed_before_it():
    facts = {SourceState: SourceState.default(), FileStates: {}, MissingPackages: ["gpg"]}
    asked = []
    facts[MissingPackages] = lambda packages: asked.append(packages) or []
    (first, *_), _ = play(apt_source, facts, source=SOURCE)
    assert first["command"] == FETCHED
    assert asked == [["ca-certificates", "curl", "gpg"]]


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        (KEYRING, [SOURCE.preferences_path, SOURCE.path]),
        ({**WHOLE, SOURCE.path: file_state("")}, [SOURCE.path]),
        ({path: state for path, state in WHOLE.items() if path != SOURCE.path}, [SOURCE.path]),
        ({**WHOLE, SOURCE.preferences_path: file_state("# theirs\n")}, [SOURCE.preferences_path]),
        ({**WHOLE, SOURCE.path: file_state(TEXT, "600")}, [SOURCE.path]),
    ],
    ids=["after the key", "source cut off", "before the source", "other preferences", "source unreadable"],
)
def test_a_run_that_was_cut_off_is_finished(files, paths):
    commands, _ = run(files)
    assert [path for path, _ in written(commands)] == paths


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (WHOLE, [OTHER_KEY]),
        (WHOLE, [KEY, OTHER_KEY]),
        (WHOLE, []),
        ({**WHOLE, SOURCE.keyring: ["0" * 64, "600", "root:root"]}, [KEY]),
        ({**WHOLE, SOURCE.keyring: ["0" * 64, "644", "alice:users"]}, [KEY]),
    ],
    ids=["another key", "one key too many", "no key, or no gpg", "apt can't read it", "somebody may write it"],
)
def test_only_the_key_is_wrong(files, keys):
    ((key,), _) = run(files, keys, NAMING)
    assert key["command"] == FETCHED


def test_a_flat_repository_has_no_components_and_may_have_no_preferences():
    flat = AptSource("a", "https://apt.home.arpa/debian", "/", (), URL, KEY)
    commands, _ = run(KEYRING, source=flat)
    text = "".join(f"{line}\n" for line in TEXT.replace("trixie", "/").splitlines() if "Components" not in line)
    assert written(commands) == [(SOURCE.path, text)]


def test_preferences_that_are_no_longer_wanted_go_away():
    commands, _ = run(WHOLE, source=AptSource("a", SOURCE.uri, "trixie", SOURCE.components, URL, KEY))
    assert commands == [f"rm {SOURCE.preferences_path}"]


def test_a_source_of_somebody_else_with_another_key_is_refused():
    theirs = "/etc/apt/sources.list.d/theirs.list"
    entry = "deb [signed-by=/usr/share/keyrings/theirs.gpg] https://apt.home.arpa/debian/ trixie main\n"
    commands, _ = run({}, [], {theirs: entry})
    ((name, (reason,), _),) = commands
    assert name == "_refused"
    assert reason.startswith(f"{theirs}: names https://apt.home.arpa/debian with another key")
    assert run(WHOLE, naming=NAMING | {theirs: entry})[0] == commands
    theirs = "/etc/apt/sources.list.d/before.list"
    assert run(WHOLE, naming=NAMING | {theirs: "deb https://apt.home.arpa/debian/ trixie main\n"})[0] == []


@pytest.fixture
def fetch(tmp_path):
    """Runs the program that fetches a key: stand-ins for curl and gpg hand it these keys."""

    def run(*keys, curl="echo armor >$file"):
        # `pub` and `sub` as gpg prints them, each with a fingerprint.
        shown = "".join(f"pub:-:255:\\nfpr:::::::::{key}:\\nsub:-:255:\\nfpr:::::::::{'F' * 40}:\\n" for key in keys)
        programs = {
            "curl": f'for each; do [ "$last" != --output ] || file=$each; last=$each; done; {curl}',
            "gpg": f"case $* in *--dearmor*) sed s/armor/key/ ;; *) printf '{shown}' ;; esac",
        }
        (tmp_path / "programs").mkdir()
        for name, text in programs.items():
            (tmp_path / "programs" / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / "programs" / name).chmod(0o755)
        keyring = tmp_path / "keyrings/a.gpg"
        environment = {"PATH": f"{tmp_path}/programs:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            ["sh", "-s", "--", URL, KEY, str(keyring)],
            input=render("apt/fetch-key.j2"), capture_output=True, text=True, env=environment,
        )  # fmt: skip
        left = sorted(path.name for path in tmp_path.iterdir() if path.name != "programs")
        return done.returncode, done.stderr.splitlines(), keyring, left

    return run


def test_the_right_key_is_installed_for_all_to_read(fetch):
    code, lines, keyring, left = fetch(KEY)
    assert (code, lines, left) == (0, [], ["keyrings"])
    assert keyring.read_text() == "key\n"
    assert keyring.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in keyring.parent.iterdir()] == ["a.gpg"]


@pytest.mark.parametrize(
    ("keys", "held"),
    [([OTHER_KEY], OTHER_KEY), ([KEY, OTHER_KEY], f"{KEY} {OTHER_KEY}"), ([], "(none)")],
    ids=["another", "one too many", "none"],
)
def test_a_wrong_key_is_refused_in_one_line(fetch, keys, held):
    code, (line,), _, left = fetch(*keys)
    assert (code, left) == (1, [])
    assert line.startswith(f"{URL} holds the key {held}, not {KEY}, so nothing is installed from there; ")


def test_a_key_that_does_not_come_is_told_in_one_line(fetch):
    code, (line,), _, left = fetch(KEY, curl="echo 'curl: (22) 404' >&2; exit 22")
    assert (code, left) == (1, [])
    assert line == f"can't fetch the key {URL}: curl: (22) 404"
