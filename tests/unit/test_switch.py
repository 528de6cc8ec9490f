"""The parts of a switch that need no systemd; the whole of it happens in `tests/engine_node`."""

from dataclasses import asdict
from pathlib import Path

import pytest

from moehost import switch
from moehost.switch import Job, Service, is_degenerate

SERVICE = Service("llama-server-tiny.service", "127.0.0.1:8080", "/keys", "0123", "[Unit]\n", {"/a": "b"}, [], 60)


@pytest.mark.parametrize("text", ["", "  \n", "@@@@@@@@", "G G G G", "\ufffd\ufffd\ufffd"])
def test_rubbish(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.parametrize("text", [" red, blue and yellow", "qe sese nimunu", "ja"])
def test_words(text: str) -> None:
    assert not is_degenerate(text)


def test_a_job_survives_its_journey() -> None:
    job = Job("/opt/moehost/engine", "old", "new", 300, 0.8, [SERVICE])
    assert Job.from_json(asdict(job)) == job


def test_requests_are_counted_whatever_the_engine_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
llamacpp:n_busy_slots_per_decode 7
"""
    monkeypatch.setattr(switch, "_ask", lambda *_: text.encode())
    assert switch._requests(SERVICE) == 3


def test_a_server_that_does_not_say_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError

    monkeypatch.setattr(switch, "_ask", refuse)
    assert switch._requests(SERVICE) == 0


@pytest.mark.parametrize(("share", "measured"), [(0.8, 12.5), (0, None)])
def test_the_old_release_is_measured_only_where_it_is_compared(
    monkeypatch: pytest.MonkeyPatch, share: float, measured: float | None
) -> None:
    monkeypatch.setattr(switch, "_requests", lambda _: 0)
    monkeypatch.setattr(switch.Switch, "_canary", lambda *_: 12.5)
    job = Job("/opt/moehost/engine", "old", "new", 300, share, [SERVICE])
    assert switch.Switch(job, print)._drained_speed(SERVICE) == measured


def test_links_are_replaced_in_one_step(tmp_path: Path) -> None:
    switch._link(tmp_path / "current", "a")
    (tmp_path / "current.new").symlink_to("left over")
    switch._link(tmp_path / "current", "b")
    assert (tmp_path / "current").readlink() == Path("releases/b")
    assert not (tmp_path / "current.new").is_symlink()


def test_a_job_that_cannot_be_read_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.json").write_text('{"engine": 1}')
    assert switch.main(str(tmp_path / "job.json")) == 2
    assert "no job that can be read" in capsys.readouterr().err
