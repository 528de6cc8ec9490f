"""The programs of a start that need cards or Podman, with stubs of nvidia-smi and podman."""

import pytest

from tests.unit.test_programs import KEY, Bench


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def stub(bench, name, script):
    """A stub of a program, first in the search path."""
    path = bench.folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def smi(bench, *used_mib):
    lines = "\\n".join(map(str, used_mib))
    question = "--query-gpu=memory.used --format=csv,noheader,nounits"
    stub(bench, "nvidia-smi", f'[ "$*" = "{question}" ] || exit 2; printf "{lines}\\n"')


class TestCardsInUse:
    def test_each_card_holds_its_share(self, bench):
        smi(bench, 90000, 48500)
        assert bench.run("cards-in-use", 48424, 48387) == (0, "")

    @pytest.mark.parametrize(
        ("used", "card", "holds"),
        [((3, 3), 0, "3"), ((90000, 1), 1, "1"), ((90000,), 1, "no"), ((90000, "[N/A]"), 1, "[N/A]")],
        ids=["both on the CPU", "one is empty", "one is gone", "one does not say"],
    )
    def test_a_card_that_is_not_used_fails_the_start(self, bench, used, card, holds):
        smi(bench, *used)
        code, said = bench.run("cards-in-use", 48424, 48387)
        assert code == 1
        least = (48424, 48387)[card]
        assert said == (
            f"CUDA{card} holds {holds} MiB, and at least {least} MiB of the model should be there: "
            "the engine runs on the CPU; look for CUDA above"
        )

    def test_a_driver_that_says_nothing_fails_the_start(self, bench):
        stub(bench, "nvidia-smi", "echo No devices were found; exit 6")
        assert bench.run("cards-in-use", 1) == (1, "nvidia-smi can't say what the cards hold: No devices were found")


class TestKeysSecret:
    def test_the_keys_become_a_secret_whatever_was_there(self, bench):
        told = bench.folder / "podman-told"
        stub(
            bench,
            "podman",
            f'echo "$@" >>{told}; case $2 in rm) exit 1 ;; create) cat "$4" >{bench.folder}/kept ;; esac',
        )
        assert bench.run("keys-secret", "llama-server-tiny") == (0, "")
        assert (bench.folder / "kept").read_text() == f"{KEY}\n"
        assert told.read_text() == (
            f"secret rm llama-server-tiny\nsecret create llama-server-tiny {bench.folder}/api-keys\n"
        )

    def test_a_podman_that_keeps_none_fails_the_start_in_its_words(self, bench):
        stub(bench, "podman", "echo Error: no space left on device; exit 125")
        code, said = bench.run("keys-secret", "llama-server-tiny")
        assert code == 1
        assert said == (
            "podman can't keep the API keys as the secret llama-server-tiny: Error: no space left on device"
        )
