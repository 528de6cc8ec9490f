"""Settings: each wrong one is refused in one line that has its path, the reason, and the way to mend it."""

from __future__ import annotations

from typing import Any

import pytest

from moehost.settings import Node, Service, SettingsError, read

MODEL = {"name": "m", "source": "file:///srv/m.gguf"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "0" * 64


def service(**settings: Any) -> dict[str, Any]:
    """A service as its owner writes it."""
    return {"name": "tiny", "model": MODEL, **settings}


def node(**settings: Any) -> dict[str, Any]:
    """A node with one service that has these settings besides the required ones."""
    return {"services": [service(**settings)]}


def model(source: str, **settings: Any) -> dict[str, Any]:
    """A node with one service of a model from this source."""
    return node(model={"name": "m", "source": source, **settings})


def parsed(**settings: Any) -> Service:
    """The one service of a node, understood."""
    return read(node(**settings)).services[0]


def refused(data: dict[str, Any]) -> list[str]:
    """The lines with which the settings are refused."""
    with pytest.raises(SettingsError) as caught:
        read(data)
    assert not any("\n" in line for line in caught.value.lines)
    return caught.value.lines


UNKNOWN_KEYS = {
    "with its nearest name": ({"servces": []}, "servces: unknown setting; did you mean 'services'?"),
    "with all names, where none is near": (
        {"zzz": 1},
        "zzz: unknown setting; known: services, gpu, nvidia, tuning, allow_reboot, engine, models_dir, hf_endpoint, "
        "hf_token_file, calibration_file, download_connections, free_space_reserve_mib, verify_models, gateway, "
        "router, firewall, metrics, notify",
    ),
    "in a service": (node(contxt=512), "services[0].contxt: unknown setting; did you mean 'context'?"),
    "in a later service": (
        {"services": [service(), service(name="b", port=8081, prot=1)]},
        "services[1].prot: unknown setting; did you mean 'port'?",
    ),
    "in a part of a service": (
        node(sampling={"temprature": 1}),
        "services[0].sampling.temprature: unknown setting; did you mean 'temperature'?",
    ),
    "in a model": (
        model("file:///srv/m.gguf", sha=DIGEST),
        "services[0].model.sha: unknown setting; did you mean 'sha256'?",
    ),
    "in a part of a node": (
        {"engine": {"sourc": "package"}},
        "engine.sourc: unknown setting; did you mean 'source'?",
    ),
}
WRONG_VALUES = {
    "a number as text": (node(context="8192"), "services[0].context: '8192': input should be a valid integer"),
    "a truth value for a number": (node(context=True), "services[0].context: True: input should be a valid integer"),
    "too little": (node(context=100), "services[0].context: 100: input should be greater than or equal to 512"),
    "too much": (node(port=65536), "services[0].port: 65536: input should be less than or equal to 65535"),
    "beyond a scale": (
        node(sampling={"top_p": 2}),
        "services[0].sampling.top_p: 2: input should be less than or equal to 1",
    ),
    "of the wrong kind": ({"services": {}}, "services: {}: input should be a valid list"),
    "a long one, shortened": (
        node(threads="x" * 100),
        f"services[0].threads: '{'x' * 56}...: input should be a valid integer",
    ),
    "a word near a known one": (
        node(kv_type="q8"),
        "services[0].kv_type: 'q8' is not one of 'f16', 'bf16', 'q8_0', 'q5_1', 'q5_0', 'q4_1' or 'q4_0'; "
        "did you mean 'q8_0'?",
    ),
    "a word near none": (
        node(kv_type="zzzz"),
        "services[0].kv_type: 'zzzz' is not one of 'f16', 'bf16', 'q8_0', 'q5_1', 'q5_0', 'q4_1' or 'q4_0'",
    ),
    "a placement": (
        node(placement="cpu_moe"),
        "services[0].placement: 'cpu_moe' is not one of 'auto', 'cpu-moe', 'tensor-split', 'manual' or 'rpc'; "
        "did you mean 'cpu-moe'?",
    ),
    "a branch": (
        {"engine": {"commit": "main"}},
        "engine.commit: 'main': write all 40 digits of a commit; a branch or tag moves",
    ),
    "a short commit": (
        {"engine": {"commit": "8337e4cd"}},
        "engine.commit: '8337e4cd': write all 40 digits of a commit; a branch or tag moves",
    ),
    "a repository that is none": (
        {"engine": {"url": "ik_llama.cpp"}},
        "engine.url: 'ik_llama.cpp': write https://HOST/PATH, ssh://USER@HOST/PATH or an absolute path on the node",
    ),
    "a compute capability with a dot": (
        {"engine": {"cuda_architectures": ["12.0"]}},
        "engine.cuda_architectures[0]: '12.0': write a compute capability without the dot, e.g. 120",
    ),
    "an option that a shell would read": (
        {"engine": {"cmake_options": ["A=$(reboot)"]}},
        "engine.cmake_options[0]: 'A=$(reboot)': write NAME=VALUE",
    ),
    "an image that moves": (
        {"engine": {"image": {"base": "docker.io/nvidia/cuda:12.9.1-devel-ubuntu24.04"}}},
        "engine.image.base: 'docker.io/nvidia/cuda:12.9.1-devel-ubuntu24.04': pin it by digest, NAME@sha256:...; "
        "`skopeo inspect` shows the digest of a tag",
    ),
    "an engine": (
        {"engine": {"source": "pakage"}},
        "engine.source: 'pakage' is not one of 'git' or 'package'; did you mean 'package'?",
    ),
    "an image that is not pinned": (
        {"engine": {"image": {"base": "docker.io/nvidia/cuda:12.9.1-devel-ubuntu24.04"}}},
        "engine.image.base: 'docker.io/nvidia/cuda:12.9.1-devel-ubuntu24.04': pin it by digest, NAME@sha256:...; "
        "`skopeo inspect` shows the digest of a tag",
    ),
    "an image to run on that is not pinned": (
        {"engine": {"image": {"runtime": "docker.io/nvidia/cuda@sha256:12"}}},
        "engine.image.runtime: 'docker.io/nvidia/cuda@sha256:12': pin it by digest, NAME@sha256:...; "
        "`skopeo inspect` shows the digest of a tag",
    ),
    "a repository with a tag": (
        {"engine": {"image": {"push": "home.arpa/ik:1"}}},
        "engine.image.push: 'home.arpa/ik:1': write HOST/NAME in lower-case letters, without a tag: "
        "the release is the tag",
    ),
    "a repository without a host": (
        {"engine": {"image": {"push": "ik"}}},
        "engine.image.push: 'ik': write HOST/NAME in lower-case letters, without a tag: the release is the tag",
    ),
    "an image of a package": (
        {"engine": {"source": "package", "image": {}}},
        "engine: image belongs to source 'git', and source is 'package'; leave one of them out",
    ),
    "a name": (node(name="Tiny"), "services[0].name: 'Tiny': use lower-case letters, digits and dashes, at most 40"),
    "a model's name": (
        node(model={**MODEL, "name": "../m"}),
        "services[0].model.name: '../m': use letters, digits, dots, dashes and underscores",
    ),
    "a host by name": (
        node(host="localhost"),
        "services[0].host: 'localhost' is no IP address; 127.0.0.1 is the default",
    ),
    "a host with an interface, whose % systemd would expand": (
        node(host="fe80::1%eth0"),
        "services[0].host: 'fe80::1%eth0' names an interface, which a unit would change; use an address without %",
    ),
    "memory beyond all": (
        node(memory_max="110%"),
        "services[0].memory_max: '110%': write e.g. 92%, 700G or infinity, as in systemd",
    ),
    "slots without room": (
        node(context=512, parallel=4),
        "services[0]: context 512 shared by 4 slots leaves 128 tokens each, less than 256; "
        "raise context or lower parallel",
    ),
    "a relative folder": (
        {"models_dir": "srv"},
        "models_dir: 'srv': write an absolute path of letters, digits and ._-, without ..",
    ),
    "an endpoint without encryption": (
        {"hf_endpoint": "http://hub.example"},
        "hf_endpoint: address 'http://hub.example': is not encrypted; write https:// (http:// is for loopback only)",
    ),
}
WRONG_MODELS = {
    "https without a checksum": (
        model("https://host.example/a/x.gguf"),
        "services[0].model: source https://host.example/a/: no sha256 for x.gguf; an https source needs one for each "
        "file, write sha256 = {'x.gguf': '<64 hex digits from the publisher>'}",
    ),
    "https with a checksum for one of two shards": (
        model("https://host.example/x-00001-of-00002.gguf", sha256={"x-00001-of-00002.gguf": DIGEST}),
        "services[0].model: source https://host.example/: no sha256 for x-00002-of-00002.gguf; an https source needs "
        "one for each file, write sha256 = {'x-00002-of-00002.gguf': '<64 hex digits from the publisher>'}",
    ),
    "a checksum of no file of the model": (
        model("file:///srv/m.gguf", sha256={"other.gguf": DIGEST}),
        "services[0].model: sha256 of 'other.gguf': the model has no such file; it has m.gguf",
    ),
    "a checksum that is none": (
        model("file:///srv/m.gguf", sha256={"m.gguf": "abc"}),
        "services[0].model: sha256 of 'm.gguf': 'abc' is not 64 lower-case hex digits; copy it from sha256sum",
    ),
    "a branch instead of a commit": (
        model("hf://owner/repo/x.gguf@main"),
        "services[0].model: source 'hf://owner/repo/x.gguf@main': revision 'main' is no full commit hash; "
        "pin the commit's 40 hex digits, as branches and tags can move",
    ),
    "a branch as revision": (
        model("hf://owner/repo/x.gguf", revision="main"),
        "services[0].model: source 'hf://owner/repo/x.gguf': revision 'main' is no full commit hash; "
        "pin the commit's 40 hex digits, as branches and tags can move",
    ),
    "no revision": (
        model("hf://owner/repo/x.gguf"),
        "services[0].model: source 'hf://owner/repo/x.gguf': has no revision; "
        "pin the commit's 40 hex digits, as branches and tags can move",
    ),
    "a revision of a file": (
        model("file:///srv/m.gguf", revision=COMMIT),
        f"services[0].model: source 'file:///srv/m.gguf': only hf:// sources have a revision; remove '{COMMIT}'",
    ),
    "an unknown form": (
        model("ftp://host.example/x.gguf"),
        "services[0].model: source 'ftp://host.example/x.gguf': is none of the known forms; write "
        "file:///PATH.gguf, file:PATH.gguf, https://HOST/PATH.gguf or hf://OWNER/REPO/PATH@COMMIT",
    ),
}
COLLISIONS = {
    "names": (
        {"services": [service(), service(port=8081)]},
        "services[1].name: 'tiny' is taken by services[0]",
    ),
    "ports": (
        {"services": [service(), service(name="b", port=8081), service(name="c")]},
        "services[2].port: 8080 is taken by services[0]",
    ),
    "a service in the gateway's folder": (
        {"services": [service(name="gateway")], "gateway": {"host": "llm.home.arpa"}},
        "services[0].name: 'gateway' is the name of a folder that gateway has for itself; choose another name",
    ),
    "different models of one name": (
        {
            "services": [
                service(),
                service(name="b", port=8081, model={**MODEL, "source": "file:///srv/other.gguf"}),
            ]
        },
        "services[1].model: another service has a different model of this name",
    ),
}
REFUSALS = UNKNOWN_KEYS | WRONG_VALUES | WRONG_MODELS | COLLISIONS


class TestRefusals:
    @pytest.mark.parametrize(("data", "line"), REFUSALS.values(), ids=REFUSALS)
    def test_one_line_says_where_why_and_what_to_do(self, data: dict[str, Any], line: str) -> None:
        assert refused(data) == [line]

    def test_all_mistakes_are_named_at_once(self) -> None:
        lines = refused({"services": [{"nam": "tiny"}], "models_dir": 5})
        assert [line.partition(":")[0] for line in lines] == [
            "services[0].name",
            "services[0].model",
            "services[0].nam",
            "models_dir",
        ]

    def test_a_missing_setting_is_named(self) -> None:
        assert refused({"services": [{"model": MODEL}]}) == ["services[0].name: missing; add it"]

    @pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a.b", "a b", "a" * 41, "ä"])
    def test_a_name_that_no_unit_can_have(self, name: str) -> None:
        assert refused(node(name=name))[0].startswith("services[0].name: ")

    @pytest.mark.parametrize("size", ["0%", "101%", "0G", "700", "700g", "1.5T", "-1M", ""])
    def test_a_size_that_systemd_does_not_take(self, size: str) -> None:
        assert refused(node(memory_max=size))[0].startswith("services[0].memory_max: ")

    @pytest.mark.parametrize("folder", ["/", "/a/", "//a", "/a b", "/a/../b", "/a/.", "/a%b", "~/a"])
    def test_a_folder_that_means_another_or_would_be_changed_by_a_unit(self, folder: str) -> None:
        assert refused({"models_dir": folder})[0].startswith("models_dir: ")

    @pytest.mark.parametrize("character", ["\\", "%", "$", "\n", '"', "'"])
    def test_an_argument_that_a_unit_would_change(self, character: str) -> None:
        (line,) = refused(node(server_args=["--grammar", f"a{character}b"]))
        assert line.startswith(f"services[0].server_args: {f'a{character}b'!r} is empty or holds one of ")

    def test_an_empty_argument(self) -> None:
        assert refused(node(server_args=[""]))[0].startswith("services[0].server_args: '' is empty")

    @pytest.mark.parametrize(
        ("flag", "setting"),
        [
            ("-m", "model"),
            ("--model", "model"),
            ("-hf", "model"),
            ("--alias", "name"),
            ("--host", "host"),
            ("--port", "port"),
            ("--api-key", "api_keys_file"),
            ("--hf-token", "hf_token_file"),
        ],
    )
    def test_an_argument_that_is_a_setting_of_its_own(self, flag: str, setting: str) -> None:
        (line,) = refused(node(server_args=["--mlock", flag, "value"]))
        assert line == f"services[0].server_args: {flag} belongs to the setting {setting!r}; write it there"

    def test_nothing_changes_after_validation(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            parsed().port = 1


class TestDefaults:
    def test_a_node_without_settings_serves_nothing(self) -> None:
        empty = read({})
        assert (empty.services, empty.models_dir, empty.engine.source) == ([], "/srv/models", "git")

    def test_a_service_listens_on_loopback_with_a_key_made_on_the_node(self) -> None:
        tiny = parsed()
        assert (tiny.host, tiny.port, tiny.api_keys_file) == ("127.0.0.1", 8080, None)

    def test_a_service_may_not_take_all_memory(self) -> None:
        assert parsed().memory_max == "92%"

    def test_a_start_may_take_as_long_as_200_gb_take(self) -> None:
        assert (parsed().start_timeout_s, parsed().warm_up_timeout_s) == (2700, 1800)

    def test_one_sampling_value_leaves_the_others(self) -> None:
        sampling = parsed(sampling={"top_k": 1}).sampling
        assert (sampling.top_k, sampling.temperature, sampling.top_p) == (1, 0.7, 0.95)

    def test_settings_of_two_services_are_their_own(self) -> None:
        one, two = read({"services": [service(), service(name="b", port=8081)]}).services
        assert one.server_args is not two.server_args

    @pytest.mark.parametrize("size", ["1%", "99%", "100%", "700G", "1T", "512M", "infinity"])
    def test_a_size_as_systemd_takes_it(self, size: str) -> None:
        assert parsed(memory_max=size).memory_max == size

    @pytest.mark.parametrize("name", ["a", "0", "qwen-397b", "a" * 40])
    def test_a_name(self, name: str) -> None:
        assert parsed(name=name).unit == f"llama-server-{name}.service"

    def test_whole_numbers_stand_for_fractions(self) -> None:
        assert parsed(sampling={"temperature": 1}).sampling.temperature == 1.0

    def test_a_pinned_source(self) -> None:
        assert read(model(f"hf://owner/repo/x.gguf@{COMMIT}")).models[0].source.endswith(COMMIT)

    def test_an_https_source_with_its_checksum(self) -> None:
        assert read(model("https://host.example/x.gguf", sha256={"x.gguf": DIGEST})).models[0].sha256

    def test_a_hub_on_loopback_needs_no_encryption(self) -> None:
        assert read({"hf_endpoint": "http://127.0.0.1:8000"}).hf_endpoint == "http://127.0.0.1:8000"


class TestOtherKeys:
    @pytest.mark.parametrize(
        "key",
        ["_sudo", "ssh_user", "podman_identifier", "docker_identifier", "fake_responses", "chroot_x", "x_note"],
    )
    def test_what_belongs_to_pyinfra_or_to_the_owner_is_left_out(self, key: str) -> None:
        assert read({key: object()}) == read({})

    @pytest.mark.parametrize("key", ["sshuser", "xnote", "fake"])
    def test_a_name_that_only_looks_alike_is_not(self, key: str) -> None:
        assert refused({key: 1})[0].startswith(f"{key}: unknown setting")

    def test_only_at_the_top(self) -> None:
        assert refused(node(x_note=1))[0].startswith("services[0].x_note: unknown setting")


class TestNode:
    def test_files_on_this_computer_by_the_path_of_their_key(self) -> None:
        described = read(
            {
                "services": [service(), service(name="b", port=8081, api_keys_file="~/keys")],
                "hf_token_file": "token",
            }
        )
        assert described.local_files == {"services[1].api_keys_file": "~/keys", "hf_token_file": "token"}

    def test_no_file_without_a_setting_that_names_one(self) -> None:
        assert read(node()).local_files == {}

    def test_a_model_of_two_services_counts_once_in_order(self) -> None:
        other = {"name": "a", "source": "file:///srv/a.gguf"}
        described = read(
            {
                "services": [
                    service(),
                    service(name="b", port=8081, model=other),
                    service(name="c", port=8082),
                ]
            }
        )
        assert [each.name for each in described.models] == ["m", "a"]

    def test_it_can_be_read_back_from_its_own_data(self) -> None:
        described = read(node(sampling={"top_k": 1}, server_args=["--mlock"]))
        assert Node.model_validate(described.model_dump()) == described


class TestService:
    @pytest.mark.parametrize(
        ("host", "url_host"),
        [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("192.0.2.7", "192.0.2.7"),
            ("::", "[::1]"),
            ("::1", "[::1]"),
            ("2001:DB8::0:7", "[2001:db8::7]"),
        ],
    )
    def test_this_machine_reaches_the_server_at(self, host: str, url_host: str) -> None:
        assert parsed(host=host).url_host == url_host

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            ("127.0.0.1", True),
            ("127.8.0.1", True),
            ("::1", True),
            ("0.0.0.0", False),
            ("::", False),
            ("10.0.0.1", False),
        ],
    )
    def test_only_loopback_is_loopback(self, host: str, loopback: bool) -> None:
        assert parsed(host=host).is_on_loopback is loopback


@pytest.mark.parametrize("base", [f"docker.io/nvidia/cuda@sha256:{DIGEST}", "localhost/cuda:12.9", None])
def test_an_image_is_built_in_what_is_pinned_or_local(base: str | None) -> None:
    image = read({"engine": {"image": {"base": base, "runtime": base}}}).engine.image
    assert image is not None
    assert (image.base, image.runtime) == (base, base)


@pytest.mark.parametrize(
    "push", ["compute.home.arpa/ik_llama-cuda", "127.0.0.1:5000/home/ik", "localhost:5000/a/b-c"]
)
def test_an_image_is_pushed_to_a_repository(push: str) -> None:
    image = read({"engine": {"image": {"push": push}}}).engine.image
    assert image is not None
    assert image.push == push


@pytest.mark.parametrize(
    ("version", "why"), [("1.17.7-1", "has CVE-2025-23266"), ("1.17.8-1", "has no nvidia-cdi-refresh.service")]
)
def test_a_container_toolkit_that_is_not_to_be_installed(version: str, why: str) -> None:
    (line,) = refused({"nvidia": {"toolkit_version": version}})
    assert line.startswith(f"nvidia.toolkit_version: '{version}' {why}")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({}, False),
        ({**node(runtime="container"), "engine": {"image": {}}}, True),
        ({**node(runtime="container"), "engine": {"image": {}}, "gpu": "off"}, False),
        ({**node(runtime="container"), "engine": {"image": {}}, "nvidia": {"container_toolkit": False}}, False),
        ({"nvidia": {"container_toolkit": True}}, True),
        ({"nvidia": {"container_runtimes": ["docker"]}}, True),
    ],
)
def test_containers_get_at_the_cards_where_one_needs_them(data: dict[str, Any], wanted: bool) -> None:
    assert read(data).has_container_toolkit is wanted


ACCESS_REFUSED = {
    "a network that has host bits": (
        {"gateway": {"host": "llm.home.arpa", "allow_from": ["192.168.1.7/24"]}},
        "gateway.allow_from[0]: '192.168.1.7/24' is no network (192.168.1.7/24 has host bits set); write e.g. "
        "192.168.1.0/24 or fd00::/8",
    ),
    "half a certificate": (
        {"gateway": {"host": "llm.home.arpa", "certificate_file": "/c.pem"}},
        "gateway: certificate_file and certificate_key_file belong together; write both or none",
    ),
    "an origin with a path": (
        {"gateway": {"host": "llm.home.arpa", "allowed_origins": ["https://chat.home.arpa/app"]}},
        "gateway.allowed_origins[0]: 'https://chat.home.arpa/app' is no origin; write e.g. https://chat.home.arpa, "
        "without a path",
    ),
    "rules without their policy": (
        {"firewall": {"open_ports": [22]}},
        "firewall: open_ports belongs to policy 'closed', and policy is 'services'",
    ),
    "a mail without an address": ({"notify": {"by": "mail"}}, "notify: by 'mail' needs mail_to, and no url_file"),
    "a port of a service": (
        {**node(), "gateway": {"host": "llm.home.arpa", "port": 8080}},
        "gateway.port: 8080 is taken by services[0].port",
    ),
    "a service with the name of what is described": (
        {"services": [service(name="metrics")], "metrics": {}},
        "services[0].name: 'metrics' is the name of a folder that metrics has for itself; choose another name",
    ),
    "a port of the gateway": (
        {"gateway": {"host": "llm.home.arpa", "port": 9100}, "metrics": {}},
        "metrics.port: 9100 is taken by gateway.port",
    ),
}


@pytest.mark.parametrize(("data", "line"), ACCESS_REFUSED.values(), ids=ACCESS_REFUSED)
def test_access_and_watching_are_refused_in_one_line(data, line):
    assert refused(data) == [line]


def test_files_of_gateway_and_notification_are_looked_for():
    gateway = {"host": "llm.home.arpa", "user_keys_file": "/keys"}
    found = read({"gateway": gateway, "notify": {"by": "ntfy", "url_file": "/url"}}).local_files
    assert found == {"gateway.user_keys_file": "/keys", "notify.url_file": "/url"}
