"""What decides over a build, and what its result is called."""

import re
import subprocess
from dataclasses import replace

import pytest

from moehost import recipe, toolchain
from moehost.recipe import Recipe
from moehost.settings_engine import Engine
from moehost.toolchain import Cuda
from roles.operations import render
from tests.unit.test_toolchain import TEXTS, cuda

CHAIN = toolchain.parse(TEXTS)
ZEN5 = "flags : avx2 avx512f avx512bw avx512dq avx512vl avx512cd avx512vbmi avx512_vnni avx512_bf16"


def made(
    on: Cuda | None = None, architectures: tuple[str, ...] = ("120",), flags: str = ZEN5, **engine: object
) -> Recipe:
    chain = toolchain.parse({**TEXTS, "cpu_flags": flags})
    return recipe.make(Engine.model_validate(engine), chain, on, architectures)


def test_options_for_an_epyc_with_rtx_pro_6000() -> None:
    assert made(cuda("12.9.86")).options == (
        "CMAKE_BUILD_TYPE=Release",
        "GGML_NATIVE=ON",
        "GGML_AVX512=ON",
        "GGML_AVX512_VBMI=ON",
        "GGML_AVX512_VNNI=ON",
        "GGML_AVX512_BF16=ON",
        "GGML_CUDA=ON",
        "CMAKE_CUDA_ARCHITECTURES=120-real",
        "BUILD_SHARED_LIBS=OFF",
        "GGML_SCHED_MAX_COPIES=1",
        "LLAMA_CURL=OFF",
        "LLAMA_BUILD_TESTS=OFF",
        "GGML_CCACHE=OFF",
        "CMAKE_C_COMPILER_LAUNCHER=ccache",
        "CMAKE_CXX_COMPILER_LAUNCHER=ccache",
        "CMAKE_CUDA_COMPILER_LAUNCHER=ccache",
    )


def test_without_cuda_and_avx512() -> None:
    plain = made(flags="flags : avx2 fma")
    assert not [option for option in plain.options if "CUDA" in option or "AVX512" in option]
    assert (plain.cuda, plain.architectures) == (None, ())


def test_two_kinds_of_cards() -> None:
    assert "CMAKE_CUDA_ARCHITECTURES=89-real;120-real" in made(cuda("12.9.86"), ("89", "120")).options


def test_the_owners_options_come_last() -> None:
    assert made(cmake_options=["GGML_RPC=ON"]).options[-1] == "GGML_RPC=ON"


def test_the_name_says_the_commit_and_hashes_the_rest() -> None:
    one = made(cuda("12.9.86"))
    assert re.fullmatch(r"8337e4cd3861-[0-9a-f]{8}", one.release)
    assert made(cuda("12.9.86")).release == one.release


@pytest.mark.parametrize(
    "other",
    [
        {"compiler": "gcc 13.3.0"},
        {"cuda": "13.1.80"},
        {"isa": ("avx2",)},
        {"architectures": ("89",)},
        {"options": ("GGML_CUDA=ON",)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_build_has_another_name(other: dict[str, str]) -> None:
    one = made(cuda("12.9.86"))
    changed = replace(one, **other)  # type: ignore[arg-type]
    assert changed.release != one.release
    assert changed.release[:13] == one.release[:13]


def test_the_script_is_a_shell_program_with_each_option_as_one_word() -> None:
    one = made(cuda("12.9.86"), ("89", "120"))
    script = render("ik_llama/build.j2", recipe=one, targets=recipe.TARGETS)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    for option in one.options:
        assert f"    '-D{option}' \\\n" in script
    assert "--target llama-server llama-bench llama-sweep-bench\n" in script


def test_a_build_for_the_cpu_does_not_look_for_cuda() -> None:
    assert "CUDA" not in render("ik_llama/build.j2", recipe=made(), targets=recipe.TARGETS)
