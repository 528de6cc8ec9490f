"""What a node says of its condition."""

from pyinfra.api import FactBase

from moehost.last_words import KEYS
from roles.facts import CARDS, MEMORY_MODULES, Texts
from roles.ik_llama.facts import Releases

UNITS = "'llama-server-*.service' 'moehost-*.service'"
UNIT_PROPERTIES = "Id,ActiveState,SubState,Result,NRestarts,UnitFileState"


class Condition(Texts, FactBase[dict[str, str]]):
    """The condition of a node, as texts for `moehost.doctor.examine`; no serial number and no key is among them."""

    commands = {
        "container": "systemd-detect-virt --container",
        "user": "id -u",
        "kernel": "uname -r",
        "uptime": "cat /proc/uptime",
        "now": "date +%s",
        "clock": "timedatectl show --property NTPSynchronized --value",
        "reboot": "stat -c %Y /run/reboot-required && sort -u /run/reboot-required.pkgs",
        "governors": "cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        "huge_pages": "cat /sys/kernel/mm/transparent_hugepage/enabled",
        "swaps": "cat /proc/swaps",
        "modules": MEMORY_MODULES,
        # A network disk that does not answer would keep df waiting for ever.
        "disks": "timeout 10 df -P -B1M -x tmpfs -x devtmpfs",
        "mounts": "cat /proc/self/mounts",
        "rotational": "lsblk --raw --noheadings --output ROTA,MOUNTPOINT",
        "cards": "timeout 60 nvidia-smi -q -x | sed '/<supported_clocks>$/,/<\\/supported_clocks>/d; "
        "/<processes>$/,/<\\/processes>/d; /<serial>/d; /<uuid>/d; /<board_id>/d'",
        # Width of each card's link: now, and what the card has.
        "links": f"for each in $({CARDS}); do "
        'cd ${each%/vendor} && echo "${PWD##*/} $(cat current_link_width max_link_width | '
        'tr "\\n" " ")"; done',
        # Also of boots before this one: a card that fell off the bus is often back by the time anybody looks.
        "xids": "{ timeout 60 journalctl _TRANSPORT=kernel --since -14d --output short-unix --no-pager --quiet "
        "--grep 'NVRM: Xid' || dmesg | grep 'NVRM: Xid'; } | tail -n 300",
        "units": f"units=$({{ systemctl list-unit-files --plain --no-legend {UNITS}; "
        f"systemctl list-units --all --plain --no-legend {UNITS}; }} | cut -d' ' -f1 | sort -u); "
        f'test -z "$units" || systemctl show --property {UNIT_PROPERTIES} $units',
        "journal": "for unit in $(systemctl list-units --all --plain --no-legend --state failed,auto-restart "
        f"{UNITS} | cut -d' ' -f1); do journalctl --unit $unit --lines 50 --output cat --no-pager --quiet | "
        f"grep -viE '{KEYS}' | sed \"s/^/$unit /\"; done",
        "releases": f"( {Releases().command()} )",
        # Models that an inspection has found damaged, in whichever store the last deploy has made.
        "damaged": "for each in $(sed -n 's,^d \\(/[^ ]*\\) .*,\\1,p' /etc/tmpfiles.d/moehost.conf); do "
        "grep -H files $each/*/damaged.json; done",
    }
