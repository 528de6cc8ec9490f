"""What a gateway lets through; its Caddyfile and its unit, as golden files.

`UPDATE_GOLDEN=1 pytest tests/unit/test_gateway.py` writes them anew; read the difference before you commit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from moehost import gateway, settings
from moehost.gateway import CertificateError
from roles.gateway.operations import caddyfile, unit
from roles.operations import render

GOLDEN = Path(__file__).parents[1] / "fixtures/gateway"
MODEL = {"name": "m", "source": "file:///srv/m.gguf"}
QWEN = {"name": "qwen", "model": MODEL}
GLM = {"name": "glm", "model": MODEL, "port": 8081, "host": "::1"}


def node(*services: dict[str, Any], **wish: Any) -> settings.Node:
    data = {"services": list(services or [QWEN]), "gateway": {"host": "llm.home.arpa", **wish}}
    return settings.read(data)


ONE = node()
TWO = node(
    QWEN,
    GLM,
    host="192.168.1.5",
    port=8443,
    allowed_origins=["https://chat.home.arpa", "http://localhost:3000"],
    max_body_mib=8,
    allow_from=["192.168.1.0/24"],
    certificate_file="c",
    certificate_key_file="k",
    user_keys_file="u",
)
FILES = {
    "one.Caddyfile": caddyfile(ONE, None),
    "two.Caddyfile": caddyfile(TWO, "a certificate"),
    "one.service": unit(ONE, "0123456789abcdef"),
    "two.service": unit(TWO, "0123456789abcdef"),
}


class TestGolden:
    @pytest.mark.parametrize("name", FILES)
    def test_the_whole_file(self, name: str) -> None:
        file = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            file.write_text(FILES[name])
        assert FILES[name] == file.read_text()

    def test_every_file_is_made(self) -> None:
        assert {path.name for path in GOLDEN.iterdir()} == set(FILES)

    @pytest.mark.parametrize("name", [name for name in FILES if name.endswith("Caddyfile")])
    def test_nothing_waits_for_more_before_it_passes_on(self, name: str) -> None:
        text = re.sub(r"#.*", "", FILES[name])
        # With this, caddy 2.6.2 panics when it is reloaded while an answer is under way.
        assert "flush_interval" not in text
        assert "request_buffers" not in text
        assert not re.search(r"\bwrite \d", text)

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
    @pytest.mark.parametrize("name", ["one", "two"])
    def test_systemd_understands_the_unit_and_finds_it_tight(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "moehost-gateway.service"
        path.write_text(re.sub(r"^(Exec\w+=\+?)/\S+", r"\1/bin/true", FILES[f"{name}.service"], flags=re.MULTILINE))
        verify = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
        assert [line for line in verify.stderr.splitlines() if path.name in line] == []
        words = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", path]
        tight = subprocess.run(words, capture_output=True, text=True)
        assert tight.returncode == 0, tight.stdout[-500:]


def found(route: gateway.Route, request: str) -> str | None:
    """The path that a service gets of a request, or None."""
    matches = [re.fullmatch(each, request, re.DOTALL) for each in (route.reads, route.asks)]
    return next((f"/{each[1]}" for each in matches if each), None)


class TestRoutes:
    first, second = gateway.routes(TWO.services)

    @pytest.mark.parametrize(
        ("request_", "path"),
        [
            ("GET /v1/models", "/v1/models"),
            ("HEAD /health", "/health"),
            ("POST /v1/chat/completions", "/v1/chat/completions"),
            ("POST /v1/messages?beta=true", "/v1/messages"),
            ("POST /v1/messages/count_tokens", "/v1/messages/count_tokens"),
            ("POST /completion?a=/slots", "/completion"),
        ],
    )
    def test_the_first_service_has_a_prefix_and_none(self, request_: str, path: str) -> None:
        method, _, address = request_.partition(" ")
        assert found(self.first, request_) == path
        assert found(self.first, f"{method} /qwen{address}") == path
        assert found(self.second, request_) is None
        assert found(self.second, f"{method} /glm{address}") == path
        assert found(self.first, f"{method} /glm{address}") is None

    @pytest.mark.parametrize(
        "request_",
        [
            *(
                "GET /slots",
                "GET /props",
                "POST /props",
                "GET /metrics",
                "POST /slots/0?action=save",
                "GET /",
                "GET *",
            ),
            *(
                "POST /v1/models",
                "GET /v1/chat/completions",
                "PUT /v1/models",
                "OPTIONS /v1/models",
                "get /v1/models",
            ),
            *(
                "GET //v1/models",
                "GET /v1/models/",
                "GET /v1/../slots",
                "GET /v1/models/../../slots",
                "GET /V1/models",
            ),
            *("GET /v1%2Fmodels", "GET /v1/model%73", "GET /qwen/slots", "GET /qwen/glm/v1/models", "GET /glm", ""),
            *("GET /v1/modelsx", "GET x/v1/models", "GET /v1/models#?", "GET /v1/models;?a", "GET /v1/models\n?a"),
        ],
    )
    def test_what_is_not_named_is_not_there(self, request_: str) -> None:
        assert found(self.first, request_) is None
        assert found(self.second, request_) is None

    def test_where_a_service_listens(self) -> None:
        assert [self.first.upstream, self.second.upstream] == ["127.0.0.1:8080", "[::1]:8081"]

    def test_a_gateway_before_nothing(self) -> None:
        assert gateway.routes([]) == []


class TestAddresses:
    def test_private_networks_and_this_machine(self) -> None:
        assert gateway.addresses(ONE)[:2] == ["localhost", "10.0.0.0/8"]

    def test_a_service_that_listens_elsewhere_is_reached(self) -> None:
        elsewhere = {**QWEN, "host": "203.0.113.7"}
        assert gateway.addresses(node(elsewhere, allow_from=["fd00::/8"])) == ["localhost", "fd00::/8", "203.0.113.7"]
        assert gateway.addresses(node({**QWEN, "host": "0.0.0.0"}, allow_from=[])) == ["localhost"]

    @pytest.mark.parametrize(
        ("wish", "address"),
        [
            ({}, "https://llm.home.arpa"),
            ({"port": 8443}, "https://llm.home.arpa:8443"),
            ({"host": "fd00::1"}, "https://[fd00::1]"),
        ],
    )
    def test_how_clients_write_it(self, wish: dict[str, Any], address: str) -> None:
        wanted = node(**wish).gateway
        assert wanted
        assert gateway.site(wanted) == address

    def test_only_a_port_below_1024_takes_a_capability(self) -> None:
        assert "\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in FILES["one.service"]
        assert "\nPrivateUsers=no\n" in FILES["one.service"]
        assert "\nCapabilityBoundingSet=\n" in FILES["two.service"]
        assert "\nPrivateUsers=yes\n" in FILES["two.service"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
class TestCertificate:
    @pytest.fixture
    def made(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
        """A certificate and its key."""
        folder = tmp_path_factory.mktemp("certificate")
        names = "subjectAltName=DNS:llm.home.arpa,DNS:*.lab.arpa,IP:192.168.1.5"
        kind = ("-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2")
        files = ("-keyout", str(folder / "key"), "-out", str(folder / "certificate"))
        words = ["openssl", "req", *kind, "-subj", "/CN=x", "-addext", names, *files]
        subprocess.run(words, check=True, capture_output=True)
        return (folder / "certificate").read_text(), (folder / "key").read_text()

    @pytest.mark.parametrize("host", ["llm.home.arpa", "192.168.1.5", "a.lab.arpa"])
    def test_one_that_fits(self, made: tuple[str, str], host: str) -> None:
        gateway.check_certificate(*made, host)

    def test_of_another_host(self, made: tuple[str, str]) -> None:
        with pytest.raises(CertificateError, match=r"is for llm.home.arpa, .*, and gateway.host is other.home.arpa"):
            gateway.check_certificate(*made, "other.home.arpa")

    def test_that_is_over(self, made: tuple[str, str]) -> None:
        with pytest.raises(CertificateError, match="has not been valid since"):
            gateway.check_certificate(*made, "llm.home.arpa", now=datetime(2200, 1, 1, tzinfo=UTC))

    def test_of_another_key(self, made: tuple[str, str]) -> None:
        other = subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519"], check=True, capture_output=True, text=True
        )
        with pytest.raises(CertificateError, match="is not of the key in certificate_key_file"):
            gateway.check_certificate(made[0], other.stdout, "llm.home.arpa")

    @pytest.mark.parametrize("swapped", [True, False])
    def test_what_is_none(self, made: tuple[str, str], swapped: bool) -> None:
        with pytest.raises(CertificateError, match="can't be read"):
            gateway.check_certificate(*(reversed(made) if swapped else ("", "")), "llm.home.arpa")


class TestKeysProgram:
    """gateway-keys, as root runs it."""

    def run(self, folder: Path, users: str, **services: str) -> tuple[str, str]:
        (folder / "list").write_text(users)
        for name, text in services.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "api-keys").write_text(text)
        program = folder / "program"
        program.write_text(render("gateway/gateway-keys.j2"))
        group = subprocess.run(["id", "-gn"], check=True, capture_output=True, text=True).stdout.strip()
        environment = {**os.environ, "ETC": str(folder), "GROUP": group}
        words = ["sh", str(program), str(folder / "out"), str(folder / "list"), *services]
        subprocess.run(words, check=True, env=environment)
        return (folder / "out/users").read_text(), (folder / "out/services").read_text()

    def test_names_and_keys(self, tmp_path: Path) -> None:
        users, services = self.run(
            tmp_path,
            "alice a-key-of-alices-0 2026-11-29T18:00:00Z\n# c\n\nbob a-key-of-bobs-00 -\n",
            qwen="# mine\nthe-key-of-qwen-0 \nanother-key-of-q\n",
            glm="the-key-of-glm-00\n",
        )
        assert users == '# key, name\n"a-key-of-alices-0" "alice"\n"a-key-of-bobs-00" "bob"\n'
        assert services == '# service, key\n"qwen" "the-key-of-qwen-0"\n"glm" "the-key-of-glm-00"\n'
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
        for name in ("users", "services"):
            assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o640

    def test_nothing_in_a_list_is_read_as_configuration(self, tmp_path: Path) -> None:
        bad = [
            'x a"b"c"d"e"f"g"h"i -',
            "y {$HOME}0123456789 -",
            "Z 0123456789abcdef -",
            "w short -",
            "v",
            '"}" 0123456789abcdef',
        ]
        users, _ = self.run(tmp_path, "\n".join([*bad, "a 0123456789abcdef -", "b 0123456789abcdef -"]))
        assert users == '# key, name\n"0123456789abcdef" "a"\n'

    def test_without_a_list(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "")[0] == "# key, name\n"

    def test_without_a_services_keys_nothing_is_replaced(self, tmp_path: Path) -> None:
        self.run(tmp_path, "a 0123456789abcdef -\n", qwen="the-key-of-qwen-0\n")
        (tmp_path / "qwen/api-keys").unlink()
        program = ["sh", str(tmp_path / "program"), str(tmp_path / "out"), str(tmp_path / "list"), "qwen"]
        done = subprocess.run(program, env={**os.environ, "ETC": str(tmp_path)}, capture_output=True)
        assert done.returncode != 0
        assert (tmp_path / "out/services").read_text() == '# service, key\n"qwen" "the-key-of-qwen-0"\n'
