"""One test for each file of `<module>.<operation>/`: the commands that an operation yields for a state of the node.

Operations that take settings or read facts again after their own commands have plain tests beside this file.
"""

import re
from pathlib import Path

import pytest
from pyinfra_testing.operations import make_operation_tests
from pyinfra_testing.util import FakeHost

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDERS = sorted(path for path in HERE.iterdir() if "." in path.name and path.is_dir())
PLAIN = {
    "apt.apt_source": "test_apt_source.py",
    "firewall.operations.filtered": "test_filtered.py",
    **dict.fromkeys(
        (f"gateway.operations.{each}" for each in ("marked", "configured", "running", "gone")),
        "test_gateway_role.py",
    ),
    **dict.fromkeys(
        (f"proxy.{each}" for each in ("port_is_free", "without_its_unit", "account", "handed_over")), "test_proxy.py"
    ),
    **dict.fromkeys(
        (f"router.operations.{each}" for each in ("known", "configured", "running", "gone")), "test_router_role.py"
    ),
    "gpu_gate.operations.gate": "test_gate.py",
    "host_tuning.operations.tuned": "test_host_tuning.py",
    "ik_llama.build.release": "test_release.py",
    "ik_llama.cuda.cuda_toolkit": "test_cuda.py",
    "ik_llama.image.image": "test_image.py",
    "llama_server.operations.running": "test_running.py",
    "llama_server.switch.switched": "test_switched.py",
    **dict.fromkeys(("models.operations.owned", "models.operations.stored"), "test_stored.py"),
    "models.verification.inspected": "test_inspected.py",
    "metrics.operations.described": "test_metrics.py",
    "metrics.operations.installed": "test_metrics.py",
    "metrics.operations.watched": "test_metrics.py",
    "metrics.operations.unwatched": "test_metrics.py",
    "rpc_worker.operations.gone": "test_rpc_worker.py",
    "rpc_worker.operations.working": "test_rpc_worker.py",
    "notify.operations.silent": "test_metrics.py",
    "fleet.operations.looked": "test_looked.py",
    "notify.operations.told": "test_metrics.py",
    "nvidia_driver.operations.driver": "test_nvidia_driver.py",
    "nvidia_container_toolkit.operations.toolkit": "test_toolkit.py",
    "nvidia_container_toolkit.runtimes.runtime_configured": "test_runtimes.py",
}

# The harness only warns about a case that does not say why there is nothing to do.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

# A refusal is announced in a plan, and the harness's host is mute.
FakeHost.log_styled = lambda *_, **__: None

for _folder in FOLDERS:
    globals()[_folder.name] = make_operation_tests("roles", _folder.name, _folder)

# Found by their text, since a file may be a deploy of its own, which nobody can import. What is not idempotent has no
# state of a node to decide by, and no cases of it.
OPERATIONS = [
    ".".join([*file.relative_to(ROOT / "roles").with_suffix("").parts, name])
    for file in sorted((ROOT / "roles").rglob("*.py"))
    for name in re.findall(r"^@operation\(\)\ndef (\w+)", file.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_cases(operation):
    if operation in PLAIN:
        assert "def test_" in (HERE / PLAIN[operation]).read_text()
    else:
        assert list((HERE / operation).glob("*.yaml"))
