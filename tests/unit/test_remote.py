"""Remote headers: read by ranges from a loopback server, which also plays the servers that misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moehost.gguf import GgufError, read_set
from moehost.gguf import read_heads as local_heads
from moehost.remote import read_heads, read_url
from tests.fixtures.loopback import Handler, Loopback
from tests.unit.full_size import Layout, qwen35_397b, write, write_split


class Hub(Loopback):
    """Serves one folder; `mode` says how well, `log` keeps what was asked and with which credential."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Question)
        self.folder, self.mode = folder, "ranges"
        self.log: list[tuple[str, str | None, str | None]] = []


class Question(Handler):
    owner: Hub

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.owner.log.append((self.path, wanted, self.headers["Authorization"]))
        if self.path.startswith("/hub/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/hub"))
            self.end_headers()
            return
        path = self.owner.folder / self.path.partition("?")[0].lstrip("/")
        if not path.exists():
            self.send_error(404)
            return
        total = path.stat().st_size
        first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        if self.owner.mode == "shifted":
            first += 1
        if self.owner.mode == "growing":
            total += len(self.owner.log)
        with path.open("rb") as file:
            if self.owner.mode == "whole":
                self.send_response(200)
                self.send_header("Content-Length", str(total))
                self.end_headers()
                while data := file.read(1 << 16):
                    try:
                        self.wfile.write(data)
                    except OSError:  # the reader has what it wants and has gone
                        return
            file.seek(first)
            data = file.read(last - first + 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path) as server:
        yield server


SMALL = Layout({"general.architecture": "llama"}, [(f"{name}.weight", (64, 4), "Q8_0") for name in "abc"], 50)


class TestReading:
    def test_the_full_header_comes_in_growing_windows_and_nothing_beyond(self, hub: Hub) -> None:
        path = write(hub.folder / "full.gguf", qwen35_397b())
        found = read_url(f"{hub.url}/full.gguf")
        assert found.tensors == read_set([path]).tensors
        assert found.size_bytes == path.stat().st_size
        assert [wanted for _, wanted, _ in hub.log] == [
            "bytes=0-1048575",
            "bytes=1048576-3145727",
            "bytes=3145728-7340031",
            "bytes=7340032-15728639",
        ]

    def test_a_split_set_is_followed_through_all_its_shards(self, hub: Hub) -> None:
        paths = write_split(hub.folder, SMALL, 3)
        found = read_url(f"{hub.url}/model-00002-of-00003.gguf?download=true")
        assert found.tensors == read_set(paths).tensors
        assert [path for path, _, _ in hub.log] == [f"/{path.name}?download=true" for path in paths]

    def test_a_server_without_ranges_is_read_until_the_header_ends(self, hub: Hub) -> None:
        path = write(hub.folder / "full.gguf", qwen35_397b())
        hub.mode = "whole"
        assert read_url(f"{hub.url}/full.gguf").tensors == read_set([path]).tensors
        assert len(hub.log) == 1

    def test_the_token_stays_with_the_first_host(self, hub: Hub) -> None:
        write(hub.folder / "small.gguf", SMALL)
        read_url(f"{hub.url}/hub/small.gguf", token="secret")
        assert [credential for _, _, credential in hub.log] == ["Bearer secret", None]


class TestHeads:
    @pytest.mark.parametrize("mode", ["ranges", "whole"])
    def test_they_are_the_bytes_before_the_data(self, hub: Hub, mode: str) -> None:
        path = write(hub.folder / "full.gguf", qwen35_397b())
        found = read_url(f"{hub.url}/full.gguf")
        hub.mode = mode
        hub.log.clear()
        (head,) = read_heads(f"{hub.url}/full.gguf", found)
        with path.open("rb") as stream:
            assert head == stream.read(found.headers[0].data_offset)
        assert [wanted for _, wanted, _ in hub.log] == [f"bytes=0-{len(head) - 1}"]

    def test_all_shards_with_the_query_and_the_token(self, hub: Hub) -> None:
        paths = write_split(hub.folder, SMALL, 3)
        url = f"{hub.url}/hub/{paths[0].name}?download=true"
        found = read_url(url, token="secret")
        hub.log.clear()
        heads = read_heads(url, found, token="secret")
        assert heads == local_heads(read_set(paths))
        assert [path for path, _, _ in hub.log if path.startswith("/hub")] == [
            f"/hub/{path.name}?download=true" for path in paths
        ]
        assert [credential for _, _, credential in hub.log] == ["Bearer secret", None] * 3

    @pytest.mark.parametrize("size_bytes", [100, 1 << 20])
    def test_a_file_that_has_changed_is_refused(self, hub: Hub, size_bytes: int) -> None:
        path = write(hub.folder / "small.gguf", SMALL)
        found = read_url(f"{hub.url}/small.gguf")
        with path.open("r+b") as file:
            file.truncate(size_bytes)
        with pytest.raises(GgufError, match="changed since it was planned"):
            read_heads(f"{hub.url}/small.gguf", found)

    def test_a_server_that_is_gone_is_a_fault_in_one_line(self, hub: Hub) -> None:
        path = write(hub.folder / "small.gguf", SMALL)
        found = read_url(f"{hub.url}/small.gguf")
        path.unlink()
        with pytest.raises(GgufError, match=r"cannot be fetched .*404"):
            read_heads(f"{hub.url}/small.gguf", found)


class TestFaults:
    def test_a_missing_file_is_named(self, hub: Hub) -> None:
        with pytest.raises(GgufError, match=r"none[.]gguf: cannot be fetched .*404.*; check its host"):
            read_url(f"{hub.url}/none.gguf")

    @pytest.mark.parametrize("mode", ["shifted", "growing"])
    def test_a_server_that_answers_ranges_wrongly_is_refused(self, hub: Hub, mode: str) -> None:
        write(hub.folder / "full.gguf", qwen35_397b())
        hub.mode = mode
        with pytest.raises(GgufError, match=r"ranges wrongly|changed while it was read"):
            read_url(f"{hub.url}/full.gguf")

    def test_no_server_is_a_fault_in_one_line(self) -> None:
        with pytest.raises(GgufError, match="cannot be fetched"):
            read_url("http://127.0.0.1:9/model.gguf")

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "http://host.example/m.gguf", "m.gguf"])
    def test_an_address_that_is_not_safe_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"is not (encrypted|whole)"):
            read_url(url)
