"""llama-server: command lines in both dialects, and the contract with what the binaries say of themselves.

The texts are real. `help/` holds the whole `llama-server --help` of
ik_llama.cpp at 8337e4cd (a CPU build) and of Debian's llama.cpp-tools 1:0.7.0+dfsg-2; the refusals further down
were printed by the same two binaries.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from moehost.engine import (
    IK_HIDDEN_FLAGS,
    PROBE_MODEL,
    Offload,
    Version,
    command_line,
    known_flags,
    offload_arguments,
    probe_arguments,
    refusal,
    unknown_flags,
)
from moehost.settings import Service, read

FIXTURES = Path(__file__).parents[1] / "fixtures"
HELP = {
    "ik": (FIXTURES / "help/ik_llama.cpp-8337e4cd-cpu.txt").read_text(),
    "llama.cpp": (FIXTURES / "help/llama.cpp-0.7.0.txt").read_text(),
}
DIALECTS = ("ik", "llama.cpp")

CPU = Offload(context=8192, parallel=2, batch=2048, ubatch=512, threads=16, threads_batch=32)
GPUS = Offload(
    context=262144,
    parallel=1,
    batch=4096,
    ubatch=2048,
    threads=16,
    threads_batch=16,
    kv_type_k="q8_0",
    kv_type_v="q4_0",
    gpu_layers=99,
    tensor_overrides=("blk[.](3|4)[.]ffn_(gate_up|gate|up|down)_exps=CPU", "token_embd=CPU"),
    cpu_moe=True,
    split_mode="layer",
    tensor_split=(1, 0.5),
    cuda_params="fusion=0",
)


def service(**settings: object) -> Service:
    """A service as its owner describes it, with these settings besides the required ones."""
    model = {"name": "m", "source": "file:///srv/m.gguf"}
    return read({"services": [{"name": "tiny", "model": model, **settings}]}).services[0]


def values(arguments: list[str], flag: str) -> list[str]:
    """What follows a flag, for each time it stands there."""
    return [arguments[at + 1] for at, word in enumerate(arguments) if word == flag]


class TestKnownFlags:
    @pytest.mark.parametrize(
        "flag",
        [
            "-h",
            "--usage",
            "--version",  # indented, as no short form stands before it
            "-ctx-ckpt",  # `-ctx-ckpt N, --ctx-checkpoints N`: each spelling with its value
            "--ctx-checkpoints",
            "-ctx-ckpt-e",
            "--ctx-checkpoints-eviction",
            "--context-shift",  # `--context-shift (auto|on|off|0|1)`
            "-fa",
            "--flash-attn",
            "--embedding",  # `--embedding(s)`
            "--embeddings",
            "-dsatk",  # two blanks after the comma
            "--webui-mcp-proxy",  # the second of two long forms
            "-rea",
            "--reasoning",  # its value sticks to the description: `[on|off|auto]Use`
            "-l",  # `-l TOKEN_ID(+/-)BIAS`
            "--swa-compress",  # indented by 10
            "-npp",  # `-npp n0,n1,...`
            "--spec-type",
            "--no-mmap",
        ],
    )
    def test_spellings_of_ik_llama_cpp(self, flag: str) -> None:
        assert flag in known_flags(HELP["ik"])

    @pytest.mark.parametrize(
        "flag",
        [
            "--usage",
            "-kvu",  # `-kvu,  --kv-unified, -no-kvu, --no-kv-unified`
            "-no-kvu",
            "--no-kv-unified",
            "--perf",  # `--perf, --no-perf`
            "--no-perf",
            "-hfr",  # `-hf,   -hfr, --hf-repo <user>/<model>[:quant]`
            "--n-cpu-moe-draft",  # the last of four
            "--spec-draft-ncmoe",
            "--no-mmproj-auto",
            "--load-mode",
            "--fit",
            "--fim-qwen-1.5b-default",  # a dot in the name
            "--spec-ngram-map-k4v-min-hits",  # the option below it is a removed one
        ],
    )
    def test_spellings_of_llama_cpp(self, flag: str) -> None:
        assert flag in known_flags(HELP["llama.cpp"])

    @pytest.mark.parametrize(
        "flag",
        ["--draft", "--draft-n", "--draft-max", "--draft-n-min", "--spec-ngram-size-n", "--spec-ngram-min-hits"],
    )
    def test_a_removed_flag_is_not_known_although_help_lists_it(self, flag: str) -> None:
        assert flag in HELP["llama.cpp"]
        assert flag not in known_flags(HELP["llama.cpp"])

    def test_a_flag_is_removed_only_by_its_own_description(self) -> None:
        text = (
            "--kept N                  number of things\n"
            "--gone N                  the argument has been removed. use --kept\n"
            "--gone-too, --with-a-long-name N\n"
            "                          the argument has been removed. use --kept\n"
        )
        assert known_flags(text) == {"--kept"}

    @pytest.mark.parametrize(
        ("dialect", "flag"),
        [
            ("ik", "--logit-bias"),  # from the description of -l
            ("ik", "--recurrent-ckpt-mode"),  # "remains as a deprecated alias"
            ("ik", "--spec-stage"),  # "legacy"
            ("ik", "-sm"),  # from "precision under -sm graph"
            ("llama.cpp", "--fim-qwen-1"),  # the beginning of --fim-qwen-1.5b-default
        ],
    )
    def test_a_flag_that_is_only_mentioned_is_not_known(self, dialect: str, flag: str) -> None:
        assert flag in HELP[dialect]
        assert flag not in known_flags(HELP[dialect])

    @pytest.mark.parametrize(("dialect", "count"), [("ik", 391), ("llama.cpp", 407)])
    def test_none_is_lost_and_none_is_made_up(self, dialect: str, count: int) -> None:
        assert len(known_flags(HELP[dialect])) == count

    def test_what_is_said_to_be_hidden_is_hidden(self) -> None:
        assert not IK_HIDDEN_FLAGS & known_flags(HELP["ik"])


class TestUnknownFlags:
    def test_a_mistyped_flag_comes_with_its_nearest_neighbour(self) -> None:
        assert unknown_flags(["-c", "8192", "--no-mmapp"], HELP["ik"], "ik") == [
            "--no-mmapp (did you mean --no-mmap?)"
        ]

    def test_a_flag_without_a_neighbour_stands_alone(self) -> None:
        assert unknown_flags(["--zzzzzzzz"], HELP["llama.cpp"], "llama.cpp") == ["--zzzzzzzz"]

    def test_all_of_them_are_named_in_order(self) -> None:
        found = unknown_flags(["--loadmode", "none", "--metrics", "--portt", "1"], HELP["llama.cpp"], "llama.cpp")
        assert [line.split()[0] for line in found] == ["--loadmode", "--portt"]

    @pytest.mark.parametrize("value", ["-1", "-0.5", "none", "a=-b"])
    def test_a_value_is_no_flag(self, value: str) -> None:
        assert unknown_flags(["--seed", value], HELP["ik"], "ik") == []

    def test_hidden_flags_are_for_ik_alone(self) -> None:
        assert unknown_flags(["-rcache"], HELP["ik"], "ik") == []
        assert unknown_flags(["-rcache"], HELP["llama.cpp"], "llama.cpp") != []

    def test_the_dialects_are_not_interchangeable(self) -> None:
        ik = unknown_flags(command_line(service(), "/m.gguf", CPU, "ik"), HELP["llama.cpp"], "llama.cpp")
        mainline = unknown_flags(command_line(service(), "/m.gguf", CPU, "llama.cpp"), HELP["ik"], "ik")
        assert [line.split()[0] for line in ik] == ["--no-mmap"]
        assert [line.split()[0] for line in mainline] == ["--load-mode"]


class TestCommandLine:
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_it_fulfils_the_contract_of_its_own_engine(self, dialect: str) -> None:
        assert unknown_flags(command_line(service(), "/m.gguf", CPU, dialect), HELP[dialect], dialect) == []

    def test_with_gpus_it_fulfils_the_contract_of_llama_cpp(self) -> None:
        arguments = command_line(service(), "/m.gguf", GPUS, "llama.cpp")
        assert unknown_flags(arguments, HELP["llama.cpp"], "llama.cpp") == []

    def test_with_gpus_ik_lacks_only_what_its_cpu_build_does_not_print(self) -> None:
        arguments = command_line(service(), "/m.gguf", GPUS, "ik")
        assert [line.split()[0] for line in unknown_flags(arguments, HELP["ik"], "ik")] == ["-ngl", "-sm", "-ts"]

    def test_settings_arrive_in_their_flags(self) -> None:
        wanted = service(
            name="qwen",
            host="0.0.0.0",
            port=9000,
            sampling={"temperature": 0.25, "top_k": 5, "top_p": 1, "min_p": 0, "repeat_penalty": 1.05},
        )
        arguments = command_line(wanted, "/srv/models/a/b.gguf", CPU, "ik")
        expected = {
            "-m": "/srv/models/a/b.gguf",
            "--alias": "qwen",
            "--host": "0.0.0.0",
            "--port": "9000",
            "--api-key-file": "%d/api-keys",
            "--temp": "0.25",
            "--top-k": "5",
            "--top-p": "1",
            "--min-p": "0",
            "--repeat-penalty": "1.05",
        }
        assert {flag: values(arguments, flag) for flag in expected} == {
            flag: [value] for flag, value in expected.items()
        }

    def test_an_offload_arrives_in_its_flags(self) -> None:
        arguments = offload_arguments(GPUS, "ik")
        expected = {
            "-c": "262144",
            "-np": "1",
            "-b": "4096",
            "-ub": "2048",
            "-t": "16",
            "-tb": "16",
            "-ctk": "q8_0",
            "-ctv": "q4_0",
            "-ngl": "99",
            "-sm": "layer",
            "-ts": "1,0.5",
            "-ot": "blk[.](3|4)[.]ffn_(gate_up|gate|up|down)_exps=CPU,token_embd=CPU",
            "-cuda": "fusion=0",
        }
        assert {flag: values(arguments, flag) for flag in expected} == {
            flag: [value] for flag, value in expected.items()
        }
        assert "--cpu-moe" in arguments

    def test_without_gpus_no_flag_speaks_of_them(self) -> None:
        arguments = offload_arguments(CPU, "ik")
        assert not {"-ngl", "-sm", "-ts", "-ot", "--cpu-moe", "-cuda"} & set(arguments)

    def test_cuda_parameters_are_a_matter_of_ik_alone(self) -> None:
        assert "-cuda" not in offload_arguments(GPUS, "llama.cpp")

    def test_weights_are_never_mapped(self) -> None:
        assert "--no-mmap" in offload_arguments(CPU, "ik")
        assert values(offload_arguments(CPU, "llama.cpp"), "--load-mode") == ["none"]

    def test_llama_cpp_does_not_change_what_was_planned(self) -> None:
        assert values(offload_arguments(CPU, "llama.cpp"), "--fit") == ["off"]

    def test_the_owners_arguments_come_last(self) -> None:
        arguments = command_line(service(server_args=["-ub", "64"]), "/m.gguf", CPU, "ik")
        assert arguments[-2:] == ["-ub", "64"]

    def test_nobody_sees_the_prompts_of_others(self) -> None:
        assert "--no-slots" in command_line(service(), "/m.gguf", CPU, "ik")


class TestProbe:
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_it_differs_only_in_model_port_and_keys(self, dialect: str) -> None:
        real = command_line(service(port=8081), "/srv/m.gguf", GPUS, dialect)
        probe = probe_arguments(real)
        assert values(probe, "-m") == [PROBE_MODEL]
        assert values(probe, "--port") == ["0"]
        assert "--api-key-file" not in probe
        at = real.index("--api-key-file")
        restored = ["/srv/m.gguf" if word == PROBE_MODEL else word for word in probe]
        restored[restored.index("--port") + 1] = "8081"
        assert restored == real[:at] + real[at + 2 :]

    def test_the_real_command_line_stays_as_it_is(self) -> None:
        real = command_line(service(), "/srv/m.gguf", CPU, "ik")
        probe_arguments(real)
        assert values(real, "-m") == ["/srv/m.gguf"]


# What the two binaries print for `probe_arguments` of a good command line; thread ids and times as they were.
IK_TOOK_THEM = """\
INFO [                    main] build info | tid="140532859074816" timestamp=1795499374 build=4840 commit="8337e4cd3"
INFO [                    main] system info | tid="140532859074816" timestamp=1795499374 n_threads=2
CPU: using device CPU - 0 MiB free
gguf_init_from_file: failed to open '/nonexistent/probe.gguf': 'No such file or directory'
llama_model_load: error loading model: llama_model_loader: failed to load model from /nonexistent/probe.gguf

llama_model_load_from_file: failed to load model
llama_init_from_gpt_params: error: failed to load model '/nonexistent/probe.gguf'
 ERR [              load_model] unable to load model | tid="140532859074816" model="/nonexistent/probe.gguf"
"""
LLAMA_CPP_TOOK_THEM = """\
0.00.003.338 I srv  llama_server: initializing ...
0.00.061.764 I srv    load_model: loading model '/nonexistent/probe.gguf'
0.00.061.908 E gguf_init_from_file: failed to open GGUF file '/nonexistent/probe.gguf' (No such file or directory)
0.00.062.253 E cmn  common_init_: failed to load model '/nonexistent/probe.gguf'
0.00.062.311 I srv    operator(): operator(): cleaning up before exit...
0.00.062.807 E srv  llama_server: exiting due to model loading error
"""
# ... and with one wrong argument at the end, which is named beside each. After a refusal ik prints its whole help,
# llama.cpp the part about that argument.
IK_REFUSALS = {
    "--no-mmapp": ("error: unknown argument: --no-mmapp\n", "unknown argument: --no-mmapp"),
    "-fa maybe": ("error: invalid parameter for argument: -fa\n", "invalid parameter for argument: -fa"),
    "-c abc": ("stoi\n", "stoi (a value is no number, or too large)"),
    "--temp x": ("stof\n", "stof (a value is no number, or too large)"),
    "--spec-type bogus": ("unknown speculative stage type: bogus\n", "unknown speculative stage type: bogus"),
    "-mtp": (
        "legacy speculative option '-mtp' is disabled; use --spec-type mtp:n_max=1,p_min=0.0\n",
        "legacy speculative option '-mtp' is disabled; use --spec-type mtp:n_max=1,p_min=0.0",
    ),
    "-ot exps=NODEV": (
        "Available buffer types:\n  CPU\nerror: Invalid tensor buffer type override: exps=NODEV\n"
        "error: invalid parameter for argument: -ot\n",
        "Available buffer types: / CPU / Invalid tensor buffer type override: exps=NODEV / "
        "invalid parameter for argument: -ot",
    ),
}
# Without a help: ik checks these after the arguments.
IK_LATE_REFUSALS = {
    "-ctk q9_0": (
        'INFO [                    main] build info | tid="140181598877952" timestamp=1795499388 build=4840\n'
        "terminate called after throwing an instance of 'std::runtime_error'\n"
        "  what():  Invalid cache type: q9_0\n",
        "Invalid cache type: q9_0",
    ),
    "-c 99999999999": (
        "terminate called after throwing an instance of 'std::out_of_range'\n  what():  stoi\n",
        "stoi (a value is no number, or too large)",
    ),
    "--host 192.0.2.1": (
        'INFO [                    main] build info | tid="140256578258496" timestamp=1795499668 build=4840\n'
        "\ncouldn't bind to server socket: hostname=192.0.2.1 port=0\n\n",
        "couldn't bind to server socket: hostname=192.0.2.1 port=0",
    ),
}
LLAMA_CPP_REFUSALS = {
    "--no-mmap": ("error: invalid argument: --no-mmap\n", "invalid argument: --no-mmap"),
    "-ctk q9_0": (
        'error while handling argument "-ctk": Unsupported cache type: q9_0\n\nusage:\n'
        "-ctk,  --cache-type-k TYPE              KV cache data type for K\n"
        "                                        (env: LLAMA_ARG_CACHE_TYPE_K)\n\n\n"
        "to show complete usage, run with -h\n",
        'error while handling argument "-ctk": Unsupported cache type: q9_0',
    ),
    "-fa maybe": (
        "error while handling argument \"-fa\": error: unknown value for --flash-attn: 'maybe'\n\n\nusage:\n"
        "-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')\n",
        "error while handling argument \"-fa\": error: unknown value for --flash-attn: 'maybe'",
    ),
    "-c abc": (
        'error while handling argument "-c": stoi\n\nusage:\n'
        "-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)\n",
        'error while handling argument "-c": stoi (a value is no number, or too large)',
    ),
    "-ot exps=NODEV": (
        'error while handling argument "-ot": unknown buffer type\n\nusage:\n'
        "-ot,   --override-tensor <tensor name pattern>=<buffer type>,...\n"
        "                                        override tensor buffer type\n\n\n"
        "to show complete usage, run with -h\nAvailable buffer types:\n  CPU\n",
        'error while handling argument "-ot": unknown buffer type',
    ),
    "-sm layer -ts 1,1 --no-mmap": (
        "warning: llama.cpp was compiled without support for GPU offload. Setting the split mode has no effect.\n"
        "warning: llama.cpp was compiled without support for GPU offload. Setting a tensor split has no effect.\n"
        "error: invalid argument: --no-mmap\n",
        "invalid argument: --no-mmap",
    ),
    "--draft 4": (
        'error while handling argument "--draft": the argument has been removed. use --spec-draft-n-max or '
        "--spec-ngram-mod-n-max\n\nusage:\n",
        'error while handling argument "--draft": the argument has been removed. use --spec-draft-n-max or '
        "--spec-ngram-mod-n-max",
    ),
    "--host 192.0.2.1": (
        "0.00.000.989 I srv  llama_server: initializing ...\n"
        "0.00.034.706 W srv  llama_server: security: no API key is set and CORS allows all origins\n"
        "0.00.034.793 E srv         start: couldn't bind HTTP server socket, hostname: 192.0.2.1, port: 0\n"
        "0.00.034.839 I srv    operator(): operator(): cleaning up before exit...\n"
        "0.00.035.652 E srv  llama_server: exiting due to HTTP server error\n",
        "srv start: couldn't bind HTTP server socket, hostname: 192.0.2.1, port: 0 / "
        "srv llama_server: exiting due to HTTP server error",
    ),
}


class TestRefusal:
    @pytest.mark.parametrize("output", [IK_TOOK_THEM, LLAMA_CPP_TOOK_THEM], ids=DIALECTS)
    def test_an_engine_that_misses_the_model_has_taken_its_arguments(self, output: str) -> None:
        assert refusal(output) is None

    def test_warnings_are_no_refusal(self) -> None:
        warning = (
            "warning: llama.cpp was compiled without support for GPU offload. Setting the split mode has no effect."
        )
        assert refusal(f"{warning}\n{LLAMA_CPP_TOOK_THEM}") is None

    @pytest.mark.parametrize(("output", "sentence"), IK_REFUSALS.values(), ids=IK_REFUSALS)
    def test_the_sentence_of_ik_llama_cpp_above_its_help(self, output: str, sentence: str) -> None:
        assert refusal(output + HELP["ik"]) == sentence

    @pytest.mark.parametrize(("output", "sentence"), IK_LATE_REFUSALS.values(), ids=IK_LATE_REFUSALS)
    def test_the_last_words_of_ik_llama_cpp(self, output: str, sentence: str) -> None:
        assert refusal(output) == sentence

    @pytest.mark.parametrize(("output", "sentence"), LLAMA_CPP_REFUSALS.values(), ids=LLAMA_CPP_REFUSALS)
    def test_the_sentence_of_llama_cpp(self, output: str, sentence: str) -> None:
        assert refusal(output) == sentence

    def test_an_engine_that_does_not_start_at_all(self) -> None:
        said = "llama-server: error while loading shared libraries: libcuda.so.1: cannot open shared object file"
        assert refusal(said) == said

    @pytest.mark.parametrize("output", ["", HELP["ik"]], ids=["silence", "only its help"])
    def test_silence_is_no_consent(self, output: str) -> None:
        assert refusal(output) == "it ends without a word"


class TestVersion:
    def test_of_ik_llama_cpp(self) -> None:
        output = "version: 4840 (8337e4cd3)\nbuilt with cc (Debian 12.2.0-14+deb12u1) 12.2.0 for x86_64-linux-gnu\n"
        assert Version.parse(output) == Version("4840 (8337e4cd3)", 4840, "8337e4cd3")

    def test_of_debians_llama_cpp(self) -> None:
        output = "version: 0.7.0 (build 11669, commit Debian)\nbuilt with GNU 16.2.0 for Linux x86_64\n"
        assert Version.parse(output) == Version("0.7.0 (build 11669, commit Debian)", 11669, None)

    def test_of_a_build_that_does_not_know_its_commit(self) -> None:
        assert Version.parse("version: 0 (unknown)").commit is None

    @pytest.mark.parametrize("output", ["", "Segmentation fault", "version:"])
    def test_of_a_binary_that_does_not_say(self, output: str) -> None:
        assert Version.parse(output) == Version("unknown version", None, None)
