"""Every shipped unit is as closed as its line in `tests/unit/sandboxes.py` says, and docs/sandboxes.md shows that.

`UPDATE_GOLDEN=1 pytest tests/unit/test_sandboxes.py` writes the table of docs/sandboxes.md anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moehost import confined, container
from tests.unit.sandboxes import EXEMPT, UNITS, Unit
from tests.unit.test_unit import CONTAINERS, service

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/sandboxes.md"
BEGIN, END = "<!-- made by tests/unit/test_sandboxes.py -->\n", "<!-- end -->\n"
HAS_ANALYZE = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def analyze(unit: Unit, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze security` says of a unit."""
    path = folder / "unit.service"
    path.write_text(unit.text)
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def started(path: Path) -> int:
    """How many units a file of a role starts."""
    return len(re.findall(r"\bsystemd-run --", path.read_text()))


@HAS_ANALYZE
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
class TestEveryUnit:
    def test_it_is_below_its_threshold(self, unit: Unit, tmp_path: Path) -> None:
        # The option is in tenths.
        done = analyze(unit, tmp_path, f"--threshold={round(unit.at_most * 10)}")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_its_value_is_the_one_in_the_table(self, unit: Unit, tmp_path: Path) -> None:
        said = re.search(r"Overall exposure level for \S+ ([\d.]+)", analyze(unit, tmp_path).stdout)
        assert said
        # Other versions of systemd weigh a little differently.
        assert float(said[1]) == pytest.approx(unit.value, abs=0.1)

    def test_each_open_point_has_its_reason_and_no_closed_one(self, unit: Unit, tmp_path: Path) -> None:
        checks = json.loads(analyze(unit, tmp_path, "--json=short").stdout)
        assert {each["name"] for each in checks if each["set"] is False} == set(unit.open)

    def test_systemd_understands_every_line(self, unit: Unit, tmp_path: Path) -> None:
        assert analyze(unit, tmp_path).stderr == ""


class TestAllOfThem:
    def test_every_template_of_a_unit_is_in_the_table(self) -> None:
        templates = ROOT / "templates"
        found = {str(path.relative_to(templates)) for kind in ("service", "container") for path in
                 templates.glob(f"**/*.{kind}.j2")}  # fmt: skip
        known = {unit.origin for unit in UNITS.values()} | set(EXEMPT)
        assert found == {each for each in known if each.endswith((".service.j2", ".container.j2"))}

    def test_every_transient_unit_is_in_the_table(self) -> None:
        """Units that are started with systemd-run, as many as there are names in the table."""
        names: dict[str, set[str]] = {path: {"it"} for path in EXEMPT if path.startswith("roles/")}
        for name, unit in UNITS.items():
            if unit.origin.startswith("roles/"):
                names.setdefault(unit.origin, set()).add(name.split()[0])
        found = {str(path.relative_to(ROOT)): started(path) for path in
                 ROOT.glob("roles/**/*.py")}  # fmt: skip
        assert {path: count for path, count in found.items() if count} == {
            path: len(each) for path, each in names.items()
        }

    def test_every_template_that_starts_one_is_in_the_table(self) -> None:
        templates = ROOT / "templates"
        found = {str(path.relative_to(templates)) for path in templates.glob("**/*.j2") if "systemd-run" in
                 path.read_text()}  # fmt: skip
        assert found <= {unit.origin for unit in UNITS.values()}

    @pytest.mark.parametrize("name", UNITS)
    def test_no_unit_but_the_servers_own_reads_keys(self, name: str) -> None:
        """From the rest /etc/moehost is hidden.

        Not from what asks services as root, nor from what reads other files there as an account that may read no key.
        """
        lines = UNITS[name].text.splitlines()
        users = [each.removeprefix("User=") for each in lines if each.startswith("User=")]
        hidden = {"InaccessiblePaths=-/etc/moehost", "TemporaryFileSystem=/etc/moehost"} & set(lines)
        assert (
            hidden
            or users == ["moehost"]
            or name.startswith(
                (
                    "moehost-tune",
                    "moehost-switch",
                    "moehost-gateway",
                    "moehost-router",
                    "moehost-telemetry",
                    "moehost-prometheus",
                )
            )
        )

    def test_the_gateway_sees_no_folder_of_a_service(self) -> None:
        (paths,) = re.findall("^InaccessiblePaths=(.*)$", UNITS["moehost-gateway"].text, re.MULTILINE)
        assert "-/etc/moehost/tiny" in paths.split()

    def test_download_build_and_server_are_different_accounts(self) -> None:
        users = [
            UNITS[each].user for each in ("moehost-fetch-NAME of an upload", "moehost-build", "llama-server-NAME")
        ]
        assert users == [confined.FETCHER, confined.BUILDER, "moehost"]


@pytest.mark.parametrize(
    ("host", "further"),
    [("127.0.0.1", ""), ("[::1]", ""), ("192.0.2.7", " 192.0.2.7"), ("[2001:db8::7]", " 2001:db8::7")],
)
def test_a_service_may_be_asked_at_its_address_and_nobody_else(host: str, further: str) -> None:
    """Without the word `localhost`, which systemd-run 252 does not know in a list."""
    lines = confined.bench("/run/moehost-bench", host)
    assert "IPAddressDeny=any" in lines
    assert f"IPAddressAllow=127.0.0.0/8 ::1/128{further}" in lines


class TestContainers:
    def test_a_container_has_no_rights(self) -> None:
        wanted = service(runtime="container", sys_nice=False)
        options = {each.word for each in container.options(wanted, "/srv/models/m", {}, gpus=2)}
        assert {"--cap-drop=all", "--security-opt=no-new-privileges", "--read-only"} <= options
        assert "--volume=/srv/models/m:/srv/models/m:ro" in options
        assert not [each for each in options if each.startswith(("--cap-add", "--privileged", "--userns"))]

    def test_it_has_one_at_most(self) -> None:
        options = {each.word for each in container.options(service(runtime="container"), "/srv/models/m", {}, gpus=2)}
        assert [each for each in options if each.startswith("--cap-add")] == ["--cap-add=SYS_NICE"]

    @pytest.mark.parametrize("name", CONTAINERS)
    def test_and_that_is_in_each_unit_that_podman_gets(self, name: str) -> None:
        text = CONTAINERS[name]
        assert "DropCapability=all" in text or "--cap-drop=all" in text
        assert "NoNewPrivileges=true" in text or "--security-opt=no-new-privileges" in text
        assert "ReadOnly=true" in text or "--read-only" in text


def table() -> Iterator[str]:
    """The part of docs/sandboxes.md that follows from the table."""
    yield "| unit | runs as | value | at most | open points |\n| --- | --- | --- | --- | --- |\n"
    for name, unit in UNITS.items():
        yield f"| {name} | {unit.user} | {unit.value} | {unit.at_most} | {len(unit.open)} |\n"
    yield "\n## What is left out\n\n"
    for origin, reason in EXEMPT.items():
        yield f"- `{origin}`: {reason}.\n"
    yield "\n## Open points, and why\n"
    for name, unit in UNITS.items():
        yield f"\n**{name}**\n\n"
        by_reason: dict[str, list[str]] = {}
        for check, reason in unit.open.items():
            by_reason.setdefault(reason, []).append(f"`{check}`")
        for reason, checks in by_reason.items():
            yield f"- {', '.join(checks)}: {reason}\n"


def test_the_documentation_has_the_table() -> None:
    before, _, rest = DOCS.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{''.join(table())}\n{END}{after}"
    if os.environ.get("UPDATE_GOLDEN"):
        DOCS.write_text(wanted)
    assert DOCS.read_text() == wanted
