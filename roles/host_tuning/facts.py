"""What a host is and how it is tuned."""

from pyinfra.api import FactBase

from moehost.tuning_before import PATH as BEFORE
from roles.facts import MEMORY_MODULES, FileStates, Machine, Texts

# Files of this role's own.
SYSCTL = "/etc/sysctl.d/60-moehost.conf"
TMPFILES = "/etc/tmpfiles.d/moehost-tuning.conf"
UDEV = "/etc/udev/rules.d/60-moehost.rules"
GRUB = "/etc/default/grub.d/60-moehost.cfg"

VALUES = " ".join(
    [
        "/proc/sys/kernel/numa_balancing /proc/sys/vm/zone_reclaim_mode /proc/sys/vm/swappiness",
        "/proc/sys/vm/dirty_bytes /proc/sys/vm/dirty_ratio /proc/sys/vm/dirty_background_bytes",
        "/proc/sys/vm/dirty_background_ratio /proc/sys/vm/min_free_kbytes",
        "/sys/kernel/mm/transparent_hugepage/enabled /sys/kernel/mm/transparent_hugepage/defrag",
        "/sys/devices/system/cpu/cpufreq/boost /sys/devices/system/cpu/cpufreq/policy*/scaling_driver",
        "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor",
        "/sys/devices/system/cpu/cpufreq/policy*/scaling_available_governors",
        "/sys/devices/system/cpu/cpu[0-9]*/power/pm_qos_resume_latency_us",
        "/sys/devices/system/node/node*/hugepages/hugepages-*/nr_hugepages",
        "/sys/devices/system/node/node*/hugepages/hugepages-*/free_hugepages",
        "/sys/block/*/queue/rotational /sys/block/*/queue/read_ahead_kb /sys/block/*/queue/scheduler",
    ]
)


class Topology(Texts, FactBase[dict[str, str]]):
    """A host, as texts for `moehost.topology.parse`; `files` is for FileStates, `before` for `tuning_before`."""

    commands = {
        **{key: Machine.commands[key] for key in ("lscpu", "meminfo", "has_memory", "l3_ids")},
        "node_memory": "grep -h MemTotal: /sys/devices/system/node/node*/meminfo",
        "modules": MEMORY_MODULES,
        "container": "systemd-detect-virt --container",
        "virtual_machine": "systemd-detect-virt --vm",
        # A line of path and value each.
        "values": f"grep -sH '' {VALUES}",
        "words": "cat /proc/cmdline",
        # The first entry is the one that boots.
        "boot_words": "sed -n '/^[[:space:]]*linux[[:space:]]/{p;q}' /boot/grub/grub.cfg",
        "own_words": f"cat {GRUB}",
        "has_grub": "command -v update-grub && ls /etc/default/grub",
        "mounts": "cat /proc/self/mountinfo",
        "blocks": "lsblk --raw --noheadings --output KNAME,TYPE,MAJ:MIN,PKNAME",
        "cgroup": "stat --file-system --format %T /sys/fs/cgroup",
        "memlock": "systemctl show --property DefaultLimitMEMLOCK --value",
        "dma_latency": "od -An -td4 -N4 /dev/cpu_dma_latency",
        "files": str(FileStates().command(paths=[SYSCTL, TMPFILES, UDEV, GRUB, BEFORE])),
        "before": f"cat {BEFORE}",
    }
