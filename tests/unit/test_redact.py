"""What is posted holds nothing of whose machine it is, and everything of how fast it is."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehost.redact import redact

ARGV = [
    *("-m", "/srv/alice/models/Qwen3.5-397B-IQ4_NL-00001-of-00006.gguf", "-ngl", "99"),
    *("-ot", "blk[.](0|1|2)[.]ffn_(gate_up|gate|up|down)_exps=CUDA0", "-ot", "exps=CPU"),
    *("--host", "epyc.home.arpa", "--port", "8080", "--api-key-file", "/etc/moehost/qwen/api-keys"),
    *("--api-key", "swordfish", "--temp", "-1", "--slot-save-path=/home/alice/slots", "--alias", "qwen"),
    *("--mmproj=/srv/alice/mmproj-f16.gguf", "-cuda", "offload-batch-size=16,fusion=1"),
]


def test_a_command_line() -> None:
    assert redact({"argv": ARGV})["argv"] == [
        *("-m", "Qwen3.5-397B-IQ4_NL-00001-of-00006.gguf", "-ngl", "99"),
        *("-ot", "blk[.](0|1|2)[.]ffn_(gate_up|gate|up|down)_exps=CUDA0", "-ot", "exps=CPU"),
        *("--host", "<host>", "--port", "8080", "--api-key-file", "<secret>"),
        *("--api-key", "<secret>", "--temp", "-1", "--slot-save-path=<path>", "--alias", "qwen"),
        *("--mmproj=mmproj-f16.gguf", "-cuda", "offload-batch-size=16,fusion=1"),
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
def test_every_machines_own_addresses_stay(host: str) -> None:
    assert redact({"argv": ["--host", host]}) == {"argv": ["--host", host]}
    assert redact({"host": host}) == {"host": host}
    assert redact(f"listens on {host} since 12:30:00") == f"listens on {host} since 12:30:00"


@pytest.mark.parametrize(
    "model", ["models/alice/q.gguf", "../q.gguf", "~/q.gguf", "~alice/q.gguf", "/srv/my models/q.gguf"]
)
def test_a_model_is_its_file(model: str) -> None:
    assert redact({"argv": ["--model", model]}) == {"argv": ["--model", "q.gguf"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("read /home/alice/models/q.gguf: no such file", "read q.gguf: no such file"),
        ("'/srv/my models/q.gguf' is missing", "'q.gguf' is missing"),
        ("cd /home/alice", "cd <path>"),
        ("in /home/alice/, twice", "in <path>, twice"),
        ("PATH=/home/alice/bin:/opt/secret/sbin", "PATH=<path>:<path>"),
        ("file:///srv/alice/q.gguf", "q.gguf"),
        ("/opt/moehost/engine/current/bin/llama-server crashed", "llama-server crashed"),
        ("alice@epyc: refused", "<user>@<host>: refused"),
        ("mail bob.smith@example.com", "mail <user>@<host>"),
        ("no route to 192.168.178.20:8080", "no route to <address>:8080"),
        ("fe80::1%eth0 and 2001:db8::17", "<address> and <address>"),
        ("at aa:bb:cc:dd:ee:ff", "at <address>"),
        ("http://epyc:8080/completion timed out", "http://<host>:8080/completion timed out"),
        ("https://alice:pw@10.0.0.7/v1", "https://<host>/v1"),
        ("http://user:pw@localhost/v1", "http://<host>/v1"),
        ("http://127.0.0.1:8080/v1 and http://[::1]:80/", "http://127.0.0.1:8080/v1 and http://[::1]:80/"),
        ("epyc.home.arpa, nas.local and box.fritz.box", "<host>, <host> and <host>"),
        ("Authorization: Bearer abcdef0123456", "Authorization: Bearer <secret>"),
        ("key sk-abcdef123456 and hf_AbCdEfGhIj", "key <secret> and <secret>"),
        ("api_key=swordfish&x=1", "api_key=<secret>&x=1"),
        ('{"api-key": "swordfish"}', '{"api-key": "<secret>"}'),
        ("GPU-3b2c1d4e-0f1a-2b3c-4d5e-6f7a8b9c0d1e", "<uuid>"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "22.5 tok/s at 16384 tokens, first token: 3.4 s, 12/16 cores",
        "llama.cpp 0.7.0 and ik_llama.cpp 8337e4cd3861406fc04e0854b1409cd1b027fbc9",
        "driver 580.95.05, CUDA 13.0, kernel 6.12.43+deb13-amd64, BIOS 1.2.3",
        "Qwen3.5-397B-A17B-IQ4_NL, NVIDIA RTX PRO 6000 Blackwell, AMD EPYC 9175F 16-Core Processor",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "hf://OWNER/REPO/PATH",
        "prompt_n 511 is not 512; HTTP 500; 2026-11-24T10:20:30",
        "blk[.]([0-9]|1[0-9])[.]ffn_(gate|up|down)_exps=CPU",
    ],
)
def test_what_tells_of_the_machine_stays(text: str) -> None:
    assert redact(text) == text


def test_data_by_its_keys() -> None:
    found = redact(
        {
            "hostname": "epyc", "user": "alice", "hf_token": "x", "board": {"serial": "A1", "serial_number": "B2"},
            "tokens": "512", "answer_tokens": 512, "cards": [{"name": "RTX", "uuid": "u"}], "host": None,
        }
    )  # fmt: skip
    assert found == {
        "hostname": "<host>", "user": "<user>", "hf_token": "<secret>",
        "board": {"serial": "<id>", "serial_number": "<id>"},
        "tokens": "512", "answer_tokens": 512, "cards": [{"name": "RTX", "uuid": "<id>"}], "host": None,
    }  # fmt: skip


def test_names_that_are_given() -> None:
    text = "epyc7 says: Alice has no rights on epyc7.example.org; alicent and epyc70 stay"
    found = redact(text, names=["epyc7", "epyc7.example.org", "alice", ""])
    assert found == "<name> says: <name> has no rights on <name>; alicent and epyc70 stay"
    assert redact("AMD EPYC 9175F of epyc", names=["epyc"]) == "AMD EPYC 9175F of <name>"
    assert redact({"argv": ["--alias", "alice"]}, names=["alice"]) == {"argv": ["--alias", "<name>"]}


WORD = st.text(string.ascii_letters + string.digits, min_size=6, max_size=12)


@settings(max_examples=150, deadline=None)
@given(user=WORD, folder=WORD, host=WORD, before=st.sampled_from(["", "read ", "(", "x=", '"', "a: "]))
def test_nothing_planted_is_left(user: str, folder: str, host: str, before: str) -> None:
    planted = [
        f"/home/{user}/{folder}/m.gguf",
        f"{user}@{host}.local",
        f"ssh://{user}@{host}:22/",
        f"{host}.home.arpa",
    ]
    for each in planted:
        found = redact(before + each)
        # What stands there anyway may be what was planted, in part.
        rest = found.replace("<user>", "").replace("<host>", "").replace("<path>", "").replace("m.gguf", "")
        assert not any(word in rest for word in (user, folder, host)), found
        assert redact(found) == found
    assert redact(redact({"argv": ARGV})) == redact({"argv": ARGV})
