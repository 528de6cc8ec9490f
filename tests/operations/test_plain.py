"""Cases that the YAML harness has no words for: it takes an empty fact for a full one, and hides the templates."""

from roles.facts import DpkgAudit, FileStates, MissingPackages, OsRelease
from roles.ik_llama.facts import Mirrors
from roles.ik_llama.operations import package_available
from roles.operations import dpkg_configured
from tests.operations.plain import play, sha256

TRIXIE_WITHOUT_THE_PACKAGE = {
    MissingPackages: ["llama.cpp-tools"],
    OsRelease: {"PRETTY_NAME": "Debian GNU/Linux 13 (trixie)", "VERSION_CODENAME": "trixie"},
    Mirrors: ["http://mirror.home.arpa/debian/", "http://other.home.arpa/debian/"],
    FileStates: {},
}


def test_dpkg_is_left_alone_when_nothing_is_half_done():
    assert play(dpkg_configured, {DpkgAudit: []}) == ([], ["dpkg has nothing half done"])


def test_trixie_gets_the_next_suite_from_its_own_mirror():
    (preferences, sources), _ = play(package_available, TRIXIE_WITHOUT_THE_PACKAGE, package="llama.cpp-tools")
    assert preferences["command"].endswith(" /etc/apt/preferences.d/60-moehost-forky")
    assert "Pin: release n=forky\nPin-Priority: 100\n" in preferences["_stdin"]
    assert sources["command"].endswith(" /etc/apt/sources.list.d/moehost-forky.sources")
    assert "\nURIs: http://mirror.home.arpa/debian/\nSuites: forky\n" in sources["_stdin"]


def test_nothing_comes_from_the_next_suite_before_it_is_pinned():
    commands, _ = play(package_available, TRIXIE_WITHOUT_THE_PACKAGE, package="llama.cpp-tools")
    touched = [command["command"].split()[-1] for command in commands]
    assert [path.split("/")[3] for path in touched] == ["preferences.d", "sources.list.d"]


def test_a_suite_that_is_there_is_left_alone():
    written, _ = play(package_available, TRIXIE_WITHOUT_THE_PACKAGE, package="llama.cpp-tools")
    there = {each["command"].split()[-1]: [sha256(each["_stdin"]), "644", "root:root"] for each in written}
    commands, _ = play(package_available, TRIXIE_WITHOUT_THE_PACKAGE | {FileStates: there}, package="llama.cpp-tools")
    assert commands == []
