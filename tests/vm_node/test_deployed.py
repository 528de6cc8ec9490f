"""What a deploy over SSH makes of a machine with a kernel of its own."""


def test_it_is_a_machine_with_two_numa_nodes_and_control_groups_of_version_2(node):
    assert "AMD EPYC 9175F" in node.run("lscpu")
    assert node.run("cat /sys/devices/system/node/online") == "0-1"
    assert node.run("stat --file-system --format %T /sys/fs/cgroup") == "cgroup2fs"
    assert node.run("systemd-detect-virt --vm || true") not in ("", "none")


def test_everything_runs(node):
    assert node.run("systemctl is-system-running") == "running"
    assert node.run("systemctl --failed --plain --no-legend") == ""


def test_the_models_lie_on_their_own_disk(node):
    assert node.run("findmnt --noheadings --output SOURCE /srv/models") == "/dev/vdb"


def test_the_service_answers(node):
    assert node.answers("tiny", 8080)


def test_its_memory_is_interleaved(node):
    pid = node.run(f"systemctl show --property MainPID --value {node.unit}")
    assert "interleave" in node.memory_policies(pid)
