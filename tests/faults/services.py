"""Faults of a service's files, its port and its process."""

from tests.faults.drill import RUN, Drill, faults
from tests.fixtures.waiting import until

FAULTS, fault = faults()
KEYS = "/etc/moehost/tiny/api-keys"
KEY = "Service | Have an API key for tiny"


@fault(
    "the port is taken by another program while the service is stopped",
    "a start fails with a sentence, the deploy names the holder; once the port is free, it converges",
)
def port_taken(drill: Drill) -> str:
    drill.run(f"systemctl stop {drill.node.unit}")
    drill.run("systemd-run --quiet --collect --unit=squatter python3 -m http.server --bind 127.0.0.1 8080")
    drill.run("for i in $(seq 50); do ss -Hltn 'sport = :8080' | grep -q . && exit 0; sleep 0.2; done; exit 1")
    try:
        drill.tries(f"systemctl start {drill.node.unit}")
        said = drill.run(f"journalctl --no-pager --output cat --unit {drill.node.unit} --lines 20")
        assert "bind" in said, said
        drill.fails("services[0].port: 8080 is taken by python3 (pid ")
    finally:
        drill.run("systemctl stop squatter")
    drill.clock()
    drill.converges(RUN)
    return '"services[0].port: 8080 is taken by python3 (pid ...)"'


@fault("the server is killed (SIGKILL)", "systemd starts it again by itself after 30 s")
def server_killed(drill: Drill) -> str:
    drill.run(f"systemctl kill --signal=KILL {drill.node.unit}")
    drill.clock()
    until(drill.is_ready, 90)
    drill.recovered()
    return drill.run(f"systemctl show --property NRestarts {drill.node.unit}")


def new_key(drill: Drill) -> str:
    """What the key file has now."""
    length, mode = len(drill.run(f"cat {KEYS}")), drill.run(f"stat -c %a {KEYS}")
    assert length >= 32 and mode == "600"
    return f"a new key of {length} characters, mode {mode}"


@fault("the key file is deleted", "the service goes on; the next deploy makes a key and restarts the service with it")
def key_deleted(drill: Drill) -> str:
    old = drill.run(f"cat {KEYS}")
    drill.run(f"rm {KEYS}")
    # With the key that it has read.
    drill.run(f"curl --silent --fail --header 'Authorization: Bearer {old}' http://127.0.0.1:8080/props >/dev/null")
    drill.clock()
    drill.converges(KEY, RUN)
    assert drill.run(f"cat {KEYS}") != old
    return new_key(drill)


@fault("the key file is emptied", "the service goes on; the next deploy makes a key and restarts the service with it")
def key_emptied(drill: Drill) -> str:
    before = drill.node.process
    drill.run(f"truncate -s 0 {KEYS}")
    assert drill.node.process == before
    drill.clock()
    drill.converges(KEY, RUN)
    return new_key(drill)


@fault("a unit file is cut off", "the service goes on; the next deploy writes the unit again")
def unit_cut_off(drill: Drill) -> str:
    with drill.goes_on():
        drill.run(f"truncate -s 300 /etc/systemd/system/{drill.node.unit}; systemctl daemon-reload")
        drill.clock()
        drill.converges(RUN)
    return "written again, without a restart"


@fault("plan.json is garbage", "the service goes on; the next deploy writes it again")
def plan_garbage(drill: Drill) -> str:
    with drill.goes_on():
        for text in ("head -c 3000 /dev/urandom", "echo '[]'"):
            drill.run(f"{text} >/etc/moehost/tiny/plan.json")
            drill.clock()
            drill.converges(RUN)
    return "bytes of chance, then a list: each written again, without a restart"


@fault("the engine's link `current` leads nowhere", "the service goes on until the next deploy has a release for it")
def link_dangling(drill: Drill) -> str:
    release = drill.run("readlink /opt/moehost/engine/current")
    with drill.goes_on():
        drill.run("ln -sfn releases/nowhere /opt/moehost/engine/current")
    drill.clock()
    drill.converges()
    assert drill.run("readlink /opt/moehost/engine/current") == release
    return "current leads to the release again"
