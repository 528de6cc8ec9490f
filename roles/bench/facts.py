"""What runs on a node that is measured."""

import shlex

from pyinfra.api import FactBase

from roles.facts import Machine, Texts
from roles.ik_llama.facts import ENGINE


class Served(Texts, FactBase[dict[str, str]]):
    """A service, its machine and all that decides over its speed, as text for `moehost.fingerprint`; no key is in it.

    + service: name of the service
    + model_dir: folder of its model
    """

    commands = {
        **Machine.commands,
        "os_release": "cat /etc/os-release",
        "kernel": "uname -r",
        "driver": "nvidia-smi --query-gpu=driver_version --format=csv,noheader",
        "power": "nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits",
        "governors": "sort -u /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        "state": 'systemctl is-active "llama-server-$service.service"',
        "benching": "systemctl is-active moehost-bench.service",
        "plan": 'cat "/etc/moehost/$service/plan.json"',
        "build": f"cat {ENGINE}/current/build.json",
        "manifest": 'cat "$model_dir/manifest.json"',
    }

    def command(self, service: str, model_dir: str) -> str:
        return f"service={shlex.quote(service)}; model_dir={shlex.quote(model_dir)}; {super().command()}"
