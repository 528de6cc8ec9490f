"""The line that says why, and what is never shown."""

from __future__ import annotations

import json

import pytest

from moehost.last_words import why
from moehost.message import Message, reason

UNIT = "llama-server-q.service"
LOOP = """\
Starting llama-server-q.service - llama-server: q...
ggml_cuda_init: found 1 device
cudaMalloc failed: out of memory
main: exiting due to model loading error
llama-server-q.service: Main process exited, code=exited, status=1/FAILURE
llama-server-q.service: Failed with result 'exit-code'.
Failed to start llama-server-q.service - llama-server: q.
"""


def test_of_a_start_it_is_the_first_line_with_a_reason() -> None:
    assert why(UNIT, LOOP.splitlines()) == "cudaMalloc failed: out of memory"


def test_of_a_run_it_is_the_last() -> None:
    assert why(UNIT, ["slot 0: error one", "CUDA error: illegal access", "bye"]) == "CUDA error: illegal access"


def test_without_a_reason_it_is_a_line_of_its_own_and_nothing_without_one() -> None:
    assert why(UNIT, ["loading", "half way"]) == "half way"
    assert why(UNIT, [f"{UNIT}: Failed with result 'oom-kill'."]) == ""
    assert why(UNIT, []) == ""


@pytest.mark.parametrize(
    "line",
    [
        "error: api_keys: ****wxyz",
        "error: API key abcdef is wrong",
        "error: Authorization: Bearer abcdef",
        "error: token hf_abcdef",
    ],
)
def test_a_line_that_speaks_of_keys_is_left_out(line: str) -> None:
    assert reason(UNIT, f"{line}\n") == ""


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("error: sk-abc123 refused", "error: <...> refused"),
        ("error: 0123456789abcdefghijklmnopqrstuvwxyz0123456 refused", "error: <...> refused"),
        ("\x1b[31merror\x1b[0m: no\tmemory\x07", "error: nomemory"),
        ("cannot open /srv/models/Qwen3.5-397B-A17B-IQ4_NL/q-00001-of-00006.gguf", None),
    ],
)
def test_what_looks_like_a_key_is_replaced(line: str, shown: str | None) -> None:
    assert reason(UNIT, f"{line}\n") == (shown or line)


class TestMessage:
    message = Message("epyc", UNIT, "oom-kill", 3, 'a "quoted" \\ reason')

    def test_text(self) -> None:
        assert self.message.body("ntfy") == (
            "llama-server-q.service of epyc has failed (oom-kill), 3 restart(s) did not help.\n"
            'It says: a "quoted" \\ reason\n'
            "Next: moehost doctor; or on the node: journalctl -u llama-server-q.service -n 50"
        )

    def test_json_is_escaped(self) -> None:
        data = json.loads(self.message.body("webhook"))
        assert data["reason"] == 'a "quoted" \\ reason'
        assert data["text"] == data["content"] == self.message.body("ntfy")
        assert (data["host"], data["unit"], data["result"], data["restarts"]) == ("epyc", UNIT, "oom-kill", 3)

    def test_mail_has_its_heads_before_an_empty_line(self) -> None:
        heads, _, text = self.message.body("mail", "you@home.arpa").partition("\n\n")
        assert heads.splitlines()[:2] == ["To: you@home.arpa", "Subject: epyc: llama-server-q.service has failed"]
        assert text == self.message.body("ntfy")

    def test_a_test_is_called_so(self) -> None:
        assert Message("epyc", "test").body("ntfy").startswith("This is a test.")
        assert "failed" not in Message("epyc", "test").title

    def test_no_other_way(self) -> None:
        with pytest.raises(ValueError, match="none of"):
            self.message.body("pigeon")
