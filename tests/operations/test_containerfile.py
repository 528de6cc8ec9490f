"""The Containerfile of an image: its stages, who runs in them, and what the image says."""

import json
import re

import pytest

from tests.operations.image_node import BUILD, CUDA, ON_CUDA, RELEASE, RUNTIME, run, texts


@pytest.fixture(scope="module")
def container_file():
    """A function: the Containerfile for a wish."""
    return lambda build=BUILD, **wish: texts(run({"build": json.dumps(build)}, **wish)[0])["Containerfile"]


def stages(text):
    """The lines of each stage."""
    found = re.split(r"^FROM (\S+) AS (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {stage: (origin, lines) for origin, stage, lines in zip(found[::3], found[1::3], found[2::3], strict=True)}


def test_stages_and_what_they_are_made_from(container_file):
    found = stages(container_file(base=CUDA, runtime=RUNTIME))
    origins = {stage: origin for stage, (origin, _) in found.items()}
    assert origins == {"tools": CUDA, "build": "tools", "runtime": RUNTIME, "final": "runtime"}
    found = stages(container_file(base=CUDA))
    assert found["runtime"][0] == CUDA


def test_every_stage_has_the_label_that_it_is_cleaned_up_by(container_file):
    for stage, (_, lines) in stages(container_file()).items():
        assert lines.startswith(f"LABEL moehost.stage={stage}\n")


def test_what_it_builds_runs_as_nobody_of_importance(container_file):
    _, lines = stages(container_file())["build"]
    assert lines.index("USER 995:994") < lines.index("RUN ")
    assert "USER root" not in lines


def test_the_image_is_nobody_s_and_says_nothing_for_the_server(container_file):
    text = container_file(ON_CUDA, base=CUDA)
    assert "HEALTHCHECK" not in text and "LLAMA_ARG" not in text
    _, lines = stages(text)["final"]
    assert re.search(r"^USER 10001:10001$", lines, re.MULTILINE)
    assert lines.endswith('\nENTRYPOINT ["/usr/local/bin/llama-server"]\n')
    assert "ENV" not in lines


def test_a_base_made_here_gets_what_has_become_of_its_packages_and_a_pinned_one_does_not(container_file):
    assert " upgrade && " in stages(container_file())["runtime"][1]
    assert "upgrade" not in container_file(base=CUDA)
    assert "upgrade" not in container_file(runtime=RUNTIME)


def test_paths_are_those_of_the_node(container_file):
    text = container_file()
    assert "source /var/lib/moehost-build/source\n" in text
    assert f" /var/lib/moehost-build/builds/{RELEASE} " in text


def test_cuda_is_where_the_images_of_its_maker_have_it(container_file):
    text = container_file(ON_CUDA, base=CUDA)
    assert "    CUDACXX=/usr/local/cuda/bin/nvcc CUDAToolkit_ROOT=/usr/local/cuda\n" in text
    assert "CUDA" not in container_file()


def test_the_script_is_that_of_the_native_build():
    script = texts(run()[0])["build.sh"]
    assert "'-DGGML_NATIVE=ON'" in script
    assert "Using CUDA architectures" not in script
    on_cuda = texts(run({"build": json.dumps(ON_CUDA)}, base=CUDA)[0])["build.sh"]
    assert "Using CUDA architectures: 120" in on_cuda
