"""What a node has of its being watched."""

from pyinfra.api import FactBase

from roles.facts import CARDS, Texts

EXPORTER = "prometheus-node-exporter.service"
PROMETHEUS = "moehost-prometheus.service"
TIMER = "moehost-telemetry.timer"
TELEMETRY = "moehost-telemetry.service"
FOLDER = "/etc/moehost/metrics"
RECORD = f"{FOLDER}/packages"
LINK = "/var/lib/prometheus/node-exporter/moehost.prom"
ACCOUNT = "moehost-telemetry"
PROPERTIES = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload,MainPID"


class Watch(Texts, FactBase[dict[str, str]]):
    """How a node is watched, as texts.

    `units`: properties of the units; `generations`: unit and generation of each process, a line each; `link`: where
    the link for the exporter leads to; `account`; `cards`: a line for each card on the bus; `record`: the packages
    that moehost has installed for it; `listening`: who listens on which TCP port, by ss; `host`: the node's name.
    """

    commands = {
        "units": f"systemctl show --property={PROPERTIES} {EXPORTER} {PROMETHEUS} {TELEMETRY} {TIMER}",
        "generations": f"set -- $(systemctl show --property MainPID --value {EXPORTER} {PROMETHEUS}); "
        f"for unit in {EXPORTER} {PROMETHEUS}; do "
        "echo \"$unit $(tr '\\0' '\\n' </proc/$1/environ | sed -n s/^MOEHOST_GENERATION=//p)\"; shift; done",
        "link": f"readlink {LINK}",
        "account": f"getent passwd {ACCOUNT} | cut -d: -f1",
        "cards": CARDS,
        "record": f"cat {RECORD}",
        "listening": "ss -Hltnp",
        "host": "uname -n",
    }
