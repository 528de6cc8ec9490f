"""The programs of a start that need cards or Podman, with stubs of nvidia-smi and podman."""

import os

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


class TestPagesInUse:
    def run(self, bench, least_mib, **kib):
        """The program beside a process (this one) that has so much on huge pages."""
        folder = bench.folder / "proc" / str(os.getpid())
        folder.mkdir(parents=True)
        (folder / "smaps_rollup").write_text("".join(f"{key}: {value} kB\n" for key, value in kib.items()))
        return bench.run("pages-in-use", least_mib)

    @pytest.mark.parametrize("key", ["AnonHugePages", "Private_Hugetlb", "Shared_Hugetlb"])
    def test_transparent_and_static_ones_count(self, bench, key):
        assert self.run(bench, 100, Rss=1 << 20, **{key: 100 << 10}) == (0, "")

    def test_too_few_fail_the_start(self, bench):
        code, said = self.run(bench, 100, Rss=1 << 20, AnonHugePages=(100 << 10) - 1)
        assert code == 1
        assert said.startswith("99 MiB of the server are on huge pages, and at least 100 MiB of the model should be:")

    def test_a_server_that_is_gone_has_none(self, bench):
        code, _ = bench.run("pages-in-use", 1)
        assert code == 1


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
