"""How a model comes into the store: what is uploaded, what is asked of the node, and what is watched."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from moehost import settings
from moehost.job import Job
from moehost.source import ModelFile
from moehost.store import Manifest
from roles.facts import FileStates
from roles.models import operations
from roles.models.facts import Fetch, GoodFiles, StoredModel, Strangers
from roles.models.operations import Order, stored
from tests.operations.plain import Host, in_turn, play, sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = f"hf://owner/repo/m.gguf@{COMMIT}"
NO_FETCH = {"active": False, "job": None, "progress": {}}


def order(source=HUB, sha256=None, **node):
    """The order of one model, as its owner describes it."""
    model = {"name": "m", "source": source, "sha256": sha256 or {}}
    described = settings.read({"services": [{"name": "tiny", "model": model}], **node})
    return Order(described, described.models[0])


def manifest(wanted, digest="0" * 64):
    """What is in the store of a model that came from the order's source."""
    file = ModelFile("m.gguf", 4, digest)
    return Manifest("m", wanted.model.source, wanted.model.revision, (file,), "qwen35moe", 76)


def run(wanted, in_store=None, fetch=NO_FETCH, uploaded=None, good=None):
    """The commands and noops for a node with this in its store, on its way there, uploaded, and undamaged."""
    facts = {StoredModel: in_store, Fetch: fetch, FileStates: uploaded or {}, GoodFiles: good or {}}
    return play(stored, facts, node=wanted.node, model=wanted.model)


def hand_over(store="/srv/models"):
    """The command that gives moehost's own files in a store to the account that fetches."""
    return str(operations._handed_over(store))


def uploads(commands):
    """The files on this computer that are uploaded."""
    return [each[1] for each in commands if isinstance(each, list) and each[0] == "upload"]


@pytest.fixture
def local(tmp_path, monkeypatch):
    """An order of a file on this computer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/m.gguf").write_text("GGUF")
    return order("file:models/m.gguf")


def test_a_model_that_is_there_is_left_alone():
    wanted = order()
    assert run(wanted, in_store=manifest(wanted), fetch=None) == ([], ["m is in the store"])


def test_a_fresh_node_fetches_it_in_a_unit_of_its_own():
    (stop, take_over, make, write, start, watch, again), _ = run(order())
    assert stop == "systemctl stop moehost-fetch-m.service 2>/dev/null; true"
    assert make == "runuser -u moehost-fetch -- mkdir -p /srv/models/.incoming/m"
    assert write["command"] == (
        'runuser -u moehost-fetch -- sh -c \'rm -f "$0"; cat >"$1"\' '
        "/srv/models/.incoming/m/progress.json /srv/models/.incoming/m.job.json"
    )
    assert start.startswith("systemd-run --quiet --collect ")
    assert "--unit=moehost-fetch-m.service" in start.split()
    assert start.endswith("python3 -m moehost.fetch /srv/models/.incoming/m.job.json")
    assert watch[0] == "_watch"
    # What an older version's unit has written as root, whether it is stopped or left to finish.
    assert take_over == again == hand_over()


def test_the_plan_of_a_node_where_nothing_can_be_asked_yet():
    commands, _ = run(order(), fetch={})
    assert commands[-2][0] == "_watch"


def test_the_fetch_may_write_the_store_and_nothing_else():
    start = started(order(models_dir="/data/models"))
    assert [word for word in start if "WritePaths=" in word] == ["--property=ReadWritePaths=/data/models"]
    assert "--property=ProtectSystem=strict" in start


def started(wanted):
    """The words of the command that starts a fetch."""
    (start,) = (each for each in run(wanted)[0] if isinstance(each, str) and each.startswith("systemd-run"))
    return start.split()


@pytest.mark.parametrize("source", [HUB, "file:models/m.gguf", "file:///srv/alice/m.gguf"])
def test_the_fetch_runs_as_its_own_account_and_sees_no_keys(local, source):
    start = started(order(source))
    assert "--property=User=moehost-fetch" in start
    assert "--property=InaccessiblePaths=-/etc/moehost" in start


@pytest.mark.parametrize("source", [HUB, "file:models/m.gguf"])
def test_a_fetch_has_no_capability(local, source):
    start = started(order(source))
    assert "--property=CapabilityBoundingSet=" in start
    assert not [word for word in start if "AmbientCapabilities" in word]


def test_a_file_on_the_node_may_be_read_by_its_owner_only_and_the_fetch_has_no_network():
    start = started(order("file:///srv/alice/m.gguf"))
    assert "--property=CapabilityBoundingSet=CAP_DAC_READ_SEARCH" in start
    assert "--property=PrivateNetwork=yes" in start


def test_a_file_on_the_node_gets_a_second_name_before_the_fetch_starts():
    _, _, link, *_ = run(order("file:///srv/alice/m.gguf"))[0]
    assert link == (
        "runuser -u moehost-fetch -- mkdir -p /srv/models/.incoming/m && rm -rf /srv/models/.incoming/m.links "
        "&& mkdir /srv/models/.incoming/m.links && for each in /srv/alice/m.gguf ; do "
        'ln -L "$each" /srv/models/.incoming/m.links 2>/dev/null; done; '
        "chown --no-dereference moehost-fetch:moehost-fetch /srv/models/.incoming/m.links"
    )


def test_a_store_that_is_the_accounts_is_left_alone():
    noop = ["what is moehost's in /srv/models is moehost-fetch's"]
    assert play(operations.owned, {Strangers: []}, store="/srv/models") == ([], noop)


def test_a_store_of_an_older_version_is_handed_over():
    commands, _ = play(operations.owned, {Strangers: ["/srv/models/m"]}, store="/srv/models")
    assert commands == [hand_over()]


def test_the_job_is_one_that_the_program_on_the_node_takes():
    wanted = order(download_connections=3, free_space_reserve_mib=7)
    *_, write, _, _, _ = run(wanted)[0]
    job = Job.parse(write["_stdin"])
    assert (job.model, job.store, job.source) == ("m", "/srv/models", HUB)
    assert (job.connections, job.reserve_mib, job.endpoint) == (3, 7, "https://huggingface.co")
    assert not job.uploaded


def test_the_hubs_token_is_a_credential_and_in_no_command(tmp_path):
    token = tmp_path / "token"
    token.write_text("hf_secret")
    commands, _ = run(order(hf_token_file=str(token)))
    *_, write, start, _, _ = commands
    assert "--property=LoadCredential=hub-token:/etc/moehost/hub-token" in start.split()
    assert json.loads(write["_stdin"])["token_file"] == "/run/credentials/moehost-fetch-m.service/hub-token"
    assert "hf_secret" not in str(commands[:-2])


def test_a_fetch_that_is_at_work_on_the_same_is_only_watched():
    wanted = order()
    commands, _ = run(wanted, fetch={"active": True, "job": asdict(wanted.job), "progress": {}})
    watch, take_over = commands
    assert (watch[0], take_over) == ("_watch", hand_over())


def test_a_fetch_that_is_at_work_on_something_else_is_replaced():
    fetch = {"active": True, "job": {"model": "m", "source": "another"}, "progress": {}}
    commands, _ = run(order(), fetch=fetch)
    assert len(commands) == 7


def test_a_fetch_that_has_ended_is_started_again():
    wanted = order()
    commands, _ = run(wanted, fetch={"active": False, "job": asdict(wanted.job), "progress": {"error": "no space"}})
    assert len(commands) == 7


@pytest.mark.parametrize("change", ["source", "checksum"])
def test_another_source_or_checksum_is_another_model(change):
    wanted = order(sha256={"m.gguf": "1" * 64}) if change == "checksum" else order()
    there = manifest(order("file:///srv/m.gguf") if change == "source" else wanted)
    assert len(run(wanted, in_store=there)[0]) == 7


def test_a_checksum_that_the_stored_file_has_is_fulfilled():
    wanted = order(sha256={"m.gguf": "1" * 64})
    assert run(wanted, in_store=manifest(wanted, digest="1" * 64))[0] == []


def test_a_file_of_this_computer_is_uploaded_and_handed_over(local):
    commands, _ = run(local)
    _, _, folder, fresh, upload, readable, handed_over, _, write, _, _, _ = commands
    assert folder == "runuser -u moehost-fetch -- mkdir -p /srv/models/.incoming/m.upload"
    assert fresh == "rm -f /srv/models/.incoming/m.upload/m.gguf"
    assert upload == ["upload", "models/m.gguf", "/srv/models/.incoming/m.upload/m.gguf"]
    assert readable == "chmod 644 /srv/models/.incoming/m.upload/m.gguf"
    assert handed_over == ("chown --no-dereference moehost-fetch:moehost-fetch /srv/models/.incoming/m.upload/m.gguf")
    job = Job.parse(write["_stdin"])
    assert job.source == "file:///srv/models/.incoming/m.upload/m.gguf"
    assert (job.uploaded, job.label, job.sha256) == (True, "file:models/m.gguf", {"m.gguf": sha256("GGUF")})


def test_what_is_uploaded_already_is_not_uploaded_again(local):
    there = {"/srv/models/.incoming/m.upload/m.gguf": [sha256("GGUF"), "644", "root:root"]}
    commands, _ = run(local, uploaded=there)
    assert uploads(commands) == []


def test_an_upload_that_was_cut_off_is_repeated(local):
    there = {"/srv/models/.incoming/m.upload/m.gguf": [sha256("GG"), "644", "root:root"]}
    commands, _ = run(local, uploaded=there)
    assert uploads(commands) == ["models/m.gguf"]


def test_a_file_of_this_computer_that_changed_is_another_model(local):
    assert run(local, in_store=manifest(local, digest=sha256("GGUF")))[0] == []
    assert run(local, in_store=manifest(local, digest=sha256("old")))[0] != []


def test_all_shards_are_uploaded(local):
    for number in (1, 2):
        (local.uploads[0].parent / f"s-0000{number}-of-00002.gguf").write_text(f"shard {number}")
    commands, _ = run(order("file:models/s-00002-of-00002.gguf"))
    assert uploads(commands) == ["models/s-00001-of-00002.gguf", "models/s-00002-of-00002.gguf"]


def test_of_a_model_that_is_damaged_only_the_damaged_files_are_uploaded(local):
    for number in (1, 2):
        (local.uploads[0].parent / f"s-0000{number}-of-00002.gguf").write_text(f"shard {number}")
    good = {"s-00001-of-00002.gguf": sha256("shard 1"), "s-00002-of-00002.gguf": sha256("of another model")}
    commands, _ = run(order("file:models/s-00002-of-00002.gguf"), good=good)
    assert uploads(commands) == ["models/s-00002-of-00002.gguf"]
    link = "ln -fT /srv/models/m/s-00001-of-00002.gguf /srv/models/.incoming/m.upload/s-00001-of-00002.gguf"
    assert link in commands


def test_a_file_that_is_not_on_this_computer_is_refused(local):
    wanted = order("file:models/absent.gguf")
    line = "model m: models/absent.gguf is not on this computer; make it or correct the source"
    assert run(wanted, fetch=None)[0] == [["_refused", [line], {}]]


def test_a_file_of_the_node_is_not_looked_for_here():
    assert len(run(order("file:///nonexistent/m.gguf"))[0]) == 8


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time that passes only while somebody sleeps."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(operations, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))


def watch(*fetches, in_store=None, journal=()):
    """Whether the watch ends well, and what it says."""
    host = Host({Fetch: in_turn(*fetches), StoredModel: in_store})
    host.shell = lambda command: (True, SimpleNamespace(stdout_lines=list(journal)))
    done = operations._watch(None, host, order())
    return done, host.lines


def at_work(**progress):
    return {"active": True, "job": {}, "progress": progress}


def ended(**progress):
    return {"active": False, "job": {}, "progress": progress}


def test_the_watch_ends_well_when_the_model_is_in_the_store():
    progress = {"phase": "downloading", "done_bytes": 1 << 30, "total_bytes": 4 << 30}
    assert watch(at_work(**progress), ended(phase="done"), in_store=manifest(order())) == (
        True,
        ["m: downloading 1.00 of 4.00 GiB (25 %)", "m: done"],
    )


def test_the_watch_says_how_fast_it_is_and_how_long_it_will_take():
    progress = {"phase": "downloading", "done_bytes": 0, "total_bytes": 1 << 30, "rate_bytes_s": 2e6, "eta_s": 540}
    _, lines = watch(at_work(**progress), ended(), in_store=manifest(order()))
    assert lines[0] == "m: downloading 0.00 of 1.00 GiB (0 %), 2 MB/s, 9 min left"


def test_the_watch_says_something_every_five_seconds_at_most():
    steps = [at_work(phase="downloading", done_bytes=n << 30, total_bytes=99 << 30) for n in range(40)]
    _, lines = watch(*steps, ended(phase="done"), in_store=manifest(order()))
    assert len(lines) == 1 + 3 + 1


def test_a_fetch_that_fails_says_why():
    done, lines = watch(ended(phase="failed", error="m.gguf: its sha256 is wrong"))
    assert not done
    assert lines[-1] == "model m: m.gguf: its sha256 is wrong"


def test_a_fetch_that_dies_leaves_its_last_words():
    done, lines = watch(ended(), journal=["Killed", "Failed with result 'oom-kill'."])
    assert not done
    assert lines[-1] == "model m: Killed / Failed with result 'oom-kill'."


def test_a_fetch_that_dies_without_a_word():
    assert watch(ended())[1][-1] == "model m: its unit ended without a word"


def test_a_fetch_that_brought_another_model_is_a_failure():
    assert not watch(ended(phase="done"), in_store=manifest(order("file:///srv/m.gguf")))[0]
