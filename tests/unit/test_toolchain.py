"""Whether a node can build an engine, with which CUDA toolkit, and for which cards."""

import re

import pytest

from moehost import toolchain
from moehost.toolchain import Cuda, Toolchain, ToolchainError, architectures, choose, refusal

TEXTS = {
    "compiler": "gcc 14.2.0\n",
    "missing": "",
    "nvcc": "/usr/local/cuda-12.9 Cuda compilation tools, release 12.9, V12.9.86 Build cuda_12.9.r12.9/c.1_0 \n",
    "cards": "12.0, 1024\n12.0, 96000\n",
    "pci": "/sys/bus/pci/devices/0000:01:00.0/vendor\n/sys/bus/pci/devices/0000:c1:00.0/vendor\n",
    "cpu_flags": "flags\t\t: fpu sse2 fma f16c avx avx2 bmi2 avx512f avx512bw avx512_vnni syscall\n",
    "cores": "32\n",
    "available_kib": "MemAvailable:   524288000 kB\n",
}
NOTHING = dict.fromkeys(TEXTS, "")
# nvcc's way to say what it is: release and build.
BLACKWELL, ADA = ("120",), ("89",)


def chain(**texts: str) -> Toolchain:
    return toolchain.parse({**TEXTS, **texts})


def cuda(version: str) -> Cuda:
    return Cuda(version, f"/usr/local/cuda-{version}")


class TestParse:
    def test_a_node_with_two_cards(self) -> None:
        assert chain() == Toolchain(
            compiler="gcc 14.2.0",
            missing=(),
            cudas=(Cuda("12.9.86", "/usr/local/cuda-12.9"),),
            cuda_cards=2,
            capabilities=("12.0", "12.0"),
            free_vram_mib=1024,
            isa=("avx", "avx2", "avx512_vnni", "avx512bw", "avx512f", "bmi2", "f16c", "fma"),
            cores=32,
            available_mib=512000,
        )

    def test_a_node_that_says_nothing(self) -> None:
        empty = toolchain.parse(NOTHING)
        assert (empty.compiler, empty.cudas, empty.cuda_cards, empty.capabilities) == ("", (), 0, ())
        assert empty.jobs == 1

    def test_a_driver_that_is_not_loaded_is_no_card(self) -> None:
        said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
        assert chain(cards=said).capabilities == ()

    def test_jobs_have_memory_each(self) -> None:
        assert chain().jobs == 32
        assert chain(available_kib="MemAvailable: 10485760 kB").jobs == 5


class TestArchitectures:
    def test_those_of_the_cards_each_once(self) -> None:
        assert architectures(chain(cards="12.0, 1\n8.9, 1\n12.0, 1\n"), "auto", []) == ("89", "120")

    def test_those_that_the_owner_names(self) -> None:
        assert architectures(chain(cards=""), "auto", ["120"]) == ("120",)
        assert architectures(toolchain.parse(NOTHING), "on", ["120"]) == ("120",)

    def test_none_without_cards(self) -> None:
        assert architectures(toolchain.parse(NOTHING), "auto", []) == ()

    def test_none_if_the_owner_wants_none(self) -> None:
        assert architectures(chain(), "off", []) == ()

    def test_cards_without_a_driver_are_an_error_and_no_build_for_the_cpu(self) -> None:
        with pytest.raises(ToolchainError, match=r"the node has 2 NVIDIA card.s., but nvidia-smi names no card"):
            architectures(chain(cards=""), "auto", [])

    def test_cuda_without_cards_needs_a_name(self) -> None:
        with pytest.raises(ToolchainError, match=r"engine.cuda is 'on', but .* engine.cuda_architectures"):
            architectures(toolchain.parse(NOTHING), "on", [])


class TestChoose:
    @pytest.mark.parametrize(
        ("version", "wanted", "reason"),
        [
            ("12.7.99", BLACKWELL, "CUDA 12.7.99 makes no code for compute capability 120; .* 12.8 or later"),
            ("12.4.131", ("89", "120"), "makes no code for compute capability 89, 120"),
            ("13.2.51", BLACKWELL, "computes IQ1_S, IQ2_S and IQ3_S wrongly .*mended in 13.2.86"),
            ("13.2.78", BLACKWELL, "computes IQ1_S"),
            ("11.5.119", ADA, "makes no code for compute capability 89"),
        ],
    )
    def test_what_is_refused(self, version: str, wanted: tuple[str, ...], reason: str) -> None:
        said = refusal(cuda(version), wanted)
        assert said is not None
        assert re.search(reason, said)

    @pytest.mark.parametrize(
        ("version", "wanted"),
        [("12.8.93", BLACKWELL), ("13.2.86", BLACKWELL), ("13.3.10", BLACKWELL), ("13.2.51", ADA), ("12.0.140", ADA)],
    )
    def test_what_will_do(self, version: str, wanted: tuple[str, ...]) -> None:
        assert refusal(cuda(version), wanted) is None

    def test_the_newest_that_will_do(self) -> None:
        lines = "".join(f"/usr/local/cuda-{v} x V{v} y\n" for v in ("12.8.93", "12.9.86", "13.2.51", "12.4.131"))
        assert choose(chain(nvcc=lines), BLACKWELL, None) == cuda("12.9.86")
        assert choose(chain(nvcc=lines), BLACKWELL, "12.8") == cuda("12.8.93")
        assert choose(chain(nvcc=lines), BLACKWELL, "13.0") is None

    def test_a_version_that_will_not_do_is_an_error(self) -> None:
        with pytest.raises(ToolchainError, match=r"CUDA 12.4 makes no code for compute capability 120"):
            choose(chain(), BLACKWELL, "12.4")

    def test_none_that_will_do(self) -> None:
        assert choose(chain(nvcc=""), BLACKWELL, None) is None
