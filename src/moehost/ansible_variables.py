"""What Ansible itself makes of an inventory: groups, hosts and the variables that count here, as JSON.

A program of its own, the only one that loads ansible-core: Ansible talks while it reads, and keeps state for a whole
process. `python -m moehost.ansible_variables PATH` prints `{"groups", "hosts", "defaults"}`, or `{"mistake"}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PREFIX = "moehost_"
# Of each the first name that is there counts, as with Ansible.
CONNECTION = {
    "connection": ("ansible_connection",),
    "host": ("ansible_host", "ansible_ssh_host"),
    "port": ("ansible_port", "ansible_ssh_port"),
    "user": ("ansible_user", "ansible_ssh_user"),
    "key": ("ansible_private_key_file", "ansible_ssh_private_key_file"),
    "password": ("ansible_password", "ansible_ssh_password", "ansible_ssh_pass"),
    "host_key_checking": ("ansible_host_key_checking", "ansible_ssh_host_key_checking"),
    "common_args": ("ansible_ssh_common_args",),
    "extra_args": ("ansible_ssh_extra_args",),
    "become": ("ansible_become",),
    "become_method": ("ansible_become_method",),
    "become_user": ("ansible_become_user",),
    "become_password": ("ansible_become_password", "ansible_become_pass"),
}


def read(path: str) -> dict[str, Any]:
    """Groups, hosts with their variables, and what `ansible.cfg` says for all; raises what Ansible raises."""
    from ansible import constants
    from ansible.cli import CLI
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar
    from ansible.vars.manager import VariableManager

    loader = DataLoader()
    loader.set_basedir(str(Path(path).parent))
    identities = constants.DEFAULT_VAULT_IDENTITY_LIST
    loader.set_vault_secrets(CLI.setup_vault_secrets(loader, vault_ids=identities, auto_prompt=False))
    inventory = InventoryManager(loader=loader, sources=[path])
    manager = VariableManager(loader=loader, inventory=inventory)
    hosts = {}
    for host in inventory.get_hosts():
        variables = manager.get_vars(host=host)
        templar = Templar(loader=loader, variables=variables)
        hosts[str(host.name)] = dict(_counted(variables, templar, str(host.name)))
    groups = {str(name): [str(each) for each in members] for name, members in inventory.get_groups_dict().items()}
    defaults = {
        "user": constants.DEFAULT_REMOTE_USER,
        "key": constants.DEFAULT_PRIVATE_KEY_FILE,
        "become": constants.DEFAULT_BECOME,
        "host_key_checking": constants.HOST_KEY_CHECKING,
        "folder": str(Path(constants.CONFIG_FILE).parent) if constants.CONFIG_FILE else None,
    }
    return {"groups": groups, "hosts": hosts, "defaults": defaults}


def _counted(variables: Mapping[str, Any], templar: Any, host: str) -> Iterator[tuple[str, Any]]:
    """The variables that count, with what stands between braces worked out; all others stay unread."""
    names = [name for name in variables if name.startswith(PREFIX)]
    names += [name for known in CONNECTION.values() for name in known if name in variables]
    for name in names:
        try:
            # Ansible's texts remember where they are from; JSON is to have plain ones.
            yield str(name), json.loads(json.dumps(_plain(templar.template(variables[name]))))
        except Exception as error:
            raise ValueError(f"{host}: {name}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    # A vault's text decrypts itself, or says why it can't, when it becomes an ordinary one.
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def main() -> None:
    """Print what the inventory is; whatever Ansible says by the way goes to standard error."""
    answer, sys.stdout = sys.stdout, sys.stderr
    try:
        found = read(sys.argv[1])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ansible":
            raise
        found = {"mistake": "needs Ansible's own programs; pip install 'ansible-core>=2.19'"}
    except Exception as error:
        # Its messages have lines and blanks for a terminal.
        found = {"mistake": " ".join(str(error).split())}
    json.dump(found, answer)


if __name__ == "__main__":
    main()
