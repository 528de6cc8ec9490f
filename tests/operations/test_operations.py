"""One test for each file of `<module>.<operation>/`: the commands that an operation yields for a state of the node.

Operations that take settings or read facts again after their own commands have plain tests beside this file.
"""

from importlib import import_module
from pathlib import Path

import pytest
from pyinfra_testing.operations import make_operation_tests
from pyinfra_testing.util import FakeHost

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDERS = sorted(path for path in HERE.iterdir() if "." in path.name and path.is_dir())
PLAIN = {"llama_server.operations.running": "test_running.py", "models.operations.stored": "test_stored.py"}

# The harness only warns about a case that does not say why there is nothing to do.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

# A refusal is announced in a plan, and the harness's host is mute.
FakeHost.log_styled = lambda *_, **__: None

for _folder in FOLDERS:
    globals()[_folder.name] = make_operation_tests("roles", _folder.name, _folder)

OPERATIONS = []
for _file in sorted((ROOT / "roles").rglob("operations.py")):
    _module = ".".join(_file.relative_to(ROOT / "roles").with_suffix("").parts)
    for _name, _each in vars(import_module(f"roles.{_module}")).items():
        if hasattr(_each, "_inner") and _each.__module__ == f"roles.{_module}":
            OPERATIONS.append(f"{_module}.{_name}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_cases(operation):
    if operation in PLAIN:
        assert "def test_" in (HERE / PLAIN[operation]).read_text()
    else:
        assert list((HERE / operation).glob("*.yaml"))
