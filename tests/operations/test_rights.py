"""Commands from within operations have the rights of the operations, also where nobody logs in as root."""

import re
from pathlib import Path

import pytest
from pyinfra.api.arguments import auth_argument_meta

from roles.operations import shell
from tests.operations.plain import Host

ROLES = Path(__file__).parents[2] / "roles"


@pytest.mark.parametrize(
    ("data", "rights"),
    [
        ({}, {}),
        ({"_sudo": True, "ssh_user": "admin", "services": []}, {"_sudo": True}),
        ({"_sudo": True, "_sudo_password": "p"}, {"_sudo": True, "_sudo_password": "p"}),
    ],
)
def test_what_the_host_has_counts(data: dict[str, object], rights: dict[str, object]) -> None:
    asked: list[tuple[str, dict[str, object]]] = []
    node = Host({}, **data)
    node.shell = lambda command, **arguments: asked.append((command, arguments)) or (True, "said")
    assert shell(node, "systemctl restart it", _stdin="text") == (True, "said")
    assert asked == [("systemctl restart it", {**rights, "_stdin": "text"})]
    assert set(rights) <= set(auth_argument_meta)


def test_no_role_goes_by_the_rights_of_who_logs_in() -> None:
    found = [str(path) for path in ROLES.rglob("*.py") if re.search(r"host[.]run_shell_command", path.read_text())]
    assert found == [str(ROLES / "operations.py")]
