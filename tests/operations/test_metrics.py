"""How a node comes to be watched, and how that goes: order, refusals, what is an owner's."""

import pytest
from pyinfra.facts.deb import DebPackages

from moehost import settings
from roles.facts import FileStates, MissingPackages, PathsThere
from roles.metrics import wanted
from roles.metrics.facts import EXPORTER, PROMETHEUS, RECORD, Watch
from roles.metrics.operations import described, holder, installed, unwatched, watched
from roles.notify.facts import Telling
from roles.notify.operations import DROP_INS, silent, told
from roles.operations import file_state
from tests.operations.plain import play, sha256

NODE = settings.read(
    {
        "services": [{"name": "q", "model": {"name": "m", "source": "file:///srv/m.gguf"}}],
        "metrics": {"prometheus": True},
    }
)
BARE = settings.read({})
LISTENING = (
    'LISTEN 0 4096 127.0.0.1:9090 0.0.0.0:* users:(("prometheus",pid=77,fd=6))\n'
    'LISTEN 0 512 [::1]:8080 [::]:* users:(("llama-server",pid=78,fd=3))\n'
)
UNIT = "Id={}\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\nMainPID=77\n"
NOTHING = Watch().default()


def texts():
    return wanted.files(NODE, NODE.metrics, 0, "node.home.arpa")


def running(**more):
    """The facts of a node that is watched as its settings say."""
    there = texts()
    marks = {EXPORTER: there[wanted.DROP_IN], PROMETHEUS: there[f"{wanted.UNITS}/{PROMETHEUS}"]}
    units = "\n".join(UNIT.format(each) for each in (EXPORTER, PROMETHEUS, "moehost-telemetry.timer"))
    return NOTHING | {
        "units": units,
        "generations": "".join(f"{unit} {wanted.generation_of(text)}\n" for unit, text in marks.items()),
        "link": f"{wanted.OUTPUT}\n",
        "account": "moehost-telemetry\n",
        "host": "node.home.arpa\n",
        **more,
    }


def commands(operation, watch, files=None, missing=(), **arguments):
    facts = {
        Watch: watch,
        MissingPackages: list(missing),
        DebPackages: {},
        FileStates: lambda paths: {path: each for path, each in (files or {}).items() if path in paths},
        PathsThere: lambda paths, account: [*set(paths) & set(files or {}), *watch["account"].split()],
    }
    found, noops = play(operation, facts, **arguments)
    return [each["command"] if isinstance(each, dict) else each for each in found], noops


def test_who_holds_a_port():
    assert holder(LISTENING, 9090, "0") == "prometheus (pid 77)"
    assert holder(LISTENING, 9090, "77") == ""
    assert holder(LISTENING, 8080, "") == "llama-server (pid 78)"
    assert holder(LISTENING, 80, "") == ""


def test_a_port_that_is_taken_is_refused_and_nothing_is_written():
    (refusal,), _ = commands(described, NOTHING | {"listening": LISTENING}, node=NODE, wish=NODE.metrics)
    assert refusal[0] == "_refused"


def test_packages_are_recorded_before_they_come_and_prometheus_own_unit_does_not_start():
    found, _ = commands(installed, NOTHING, wish=NODE.metrics, missing=["prometheus", "prometheus-node-exporter"])
    record = next(index for index, each in enumerate(found) if each.endswith(f" {RECORD}"))
    mask = found.index("systemctl mask --quiet prometheus.service")
    install = next(index for index, each in enumerate(found) if "apt-get" in each and "install" in each)
    assert record < mask < install


def test_an_owners_prometheus_is_not_masked():
    found, _ = commands(installed, NOTHING, wish=NODE.metrics, missing=["prometheus-node-exporter"])
    assert not [each for each in found if "mask" in each]


def test_what_runs_as_wanted_is_left():
    found, noops = commands(watched, running(), node=NODE, wish=NODE.metrics)
    assert (found, noops) == ([], ["cards, services and the node are watched"])


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ({"generations": ""}, f"systemctl reset-failed {EXPORTER} 2>/dev/null; systemctl restart {EXPORTER}"),
        ({"account": ""}, "systemd-sysusers /etc/sysusers.d/moehost-metrics.conf"),
        ({"link": "elsewhere\n"}, f"ln -sfn {wanted.OUTPUT} /var/lib/prometheus/node-exporter/moehost.prom"),
        ({"units": running()["units"].replace("Reload=no", "Reload=yes")}, "systemctl daemon-reload"),
    ],
)
def test_what_is_not_so_is_made_so(more, first):
    found, _ = commands(watched, running(**more), node=NODE, wish=NODE.metrics)
    assert found[0] == first
    assert found[-1][0] == "_answers"


def test_only_packages_that_moehost_installed_go():
    there = {path: file_state(text) for path, text in texts().items()}
    found, _ = commands(unwatched, running(), there, node=BARE)
    assert not [each for each in found if "purge" in each or "unmask" in each]
    assert f"systemctl try-restart {EXPORTER}" in found
    ours = running(record="prometheus\nprometheus-node-exporter\n")
    found, _ = commands(unwatched, ours, there, node=BARE)
    (purge,) = [each for each in found if "purge" in each]
    assert purge.endswith(" prometheus prometheus-node-exporter")
    assert found.index("systemctl unmask --quiet prometheus.service") > found.index(purge)


def test_a_node_that_is_not_watched_is_left():
    assert commands(unwatched, NOTHING, node=BARE) == ([], ["the node is not watched"])


def test_keys_are_credentials_and_addresses_of_services_are_allowed():
    services = [
        {"name": name, "port": port, "host": host, "model": {"name": "m", "source": "file:///srv/m.gguf"}}
        for name, port, host in (("a", 8080, "192.168.1.5"), ("b", 8081, "0.0.0.0"), ("c", 8082, "::1"))
    ]
    node = settings.read({"services": services, "metrics": {}})
    unit = wanted.files(node, node.metrics, 2, "n")["/etc/systemd/system/moehost-telemetry.service"]
    assert "\nLoadCredential=a:/etc/moehost/a/api-keys\n" in unit
    assert "\nIPAddressAllow=localhost 192.168.1.5\n" in unit
    assert "\nDeviceAllow=char-nvidia* rw\n" in unit
    job = wanted.job(node, node.metrics, 2)
    assert [each.host for each in job.services] == ["192.168.1.5", "127.0.0.1", "[::1]"]
    assert job.cards == 2


class TestTold:
    wish = settings.read({"notify": {"by": "mail", "mail_to": "you@home.arpa"}}).notify

    def play(self, **more):
        telling = Telling().default() | {"sendmail": "/usr/sbin/sendmail\n", "account": "moehost-notify\n"} | more
        return play(told, {Telling: telling, FileStates: {}}, wish=self.wish, url=None)[0]

    def test_mail_without_sendmail_is_refused(self):
        ((name, *_),) = self.play(sendmail="")
        assert name == "_refused"

    def test_the_address_goes_over_standard_input_to_a_file_of_roots(self):
        wish = settings.read({"notify": {"by": "ntfy", "url_file": "/x"}}).notify
        facts = {Telling: Telling().default(), FileStates: {}}
        found, _ = play(told, facts, wish=wish, url="https://ntfy.home.arpa/topic\n")
        (url,) = [each for each in found if isinstance(each, dict) and each["command"].endswith("/notify/url")]
        assert " 600 " in url["command"] and "topic" not in url["command"]
        assert sha256(url["_stdin"]) == sha256("https://ntfy.home.arpa/topic\n")

    def test_systemd_reads_it_last(self):
        assert self.play()[-1] == "systemctl daemon-reload"


def test_what_tells_goes_with_its_folders_and_its_account():
    there = {path: file_state("") for path in DROP_INS}
    found, _ = play(silent, {Telling: Telling().default() | {"account": "moehost-notify\n"}, FileStates: there})
    assert found[0] == f"rm -f {' '.join(there)}"
    assert found[2:] == ["userdel moehost-notify", "systemctl daemon-reload; rm -rf /run/moehost-notify"]


def test_where_nothing_tells_nothing_goes():
    assert play(silent, {Telling: Telling().default(), FileStates: {}}) == ([], ["nobody is told"])
