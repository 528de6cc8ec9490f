"""GGUF headers: what is read, how fast, and that no damage makes the reader fail other than by name."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import tracemalloc
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehost import gguf
from moehost.gguf import Array, GgufError, Header, Tensor, read_header, read_model, read_set, split_names
from tests.unit.full_size import Layout, as_set, encoded, qwen35_397b, write, write_split

SMALL = Layout(
    {"general.architecture": "llama", "llama.block_count": 1, "llama.rope": [1, 2, 3], "llama.scale": 0.5},
    [("a.weight", (64, 4), "Q8_0"), ("b.weight", (256, 3), "IQ4_KSS"), ("c.weight", (5,), "F32")],
    vocabulary=400,
)


def read(data: bytes, size_bytes: int | None = None) -> Header:
    return read_header(BytesIO(data), len(data) if size_bytes is None else size_bytes, "model.gguf")


def refused(data: bytes, size_bytes: int | None = None) -> str:
    """The one line with which the reader refuses these bytes."""
    with pytest.raises(GgufError) as caught:
        read(data, size_bytes)
    message = str(caught.value)
    assert message.startswith("model.gguf: ") and "; " in message and "\n" not in message
    return message


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "Qwen3.5-397B-A17B-IQ4_NL.gguf", qwen35_397b())


class TestReading:
    def test_values_shapes_and_sizes(self, tmp_path: Path) -> None:
        header = read_model(write(tmp_path / "small.gguf", SMALL)).headers[0]
        assert header.version == 3
        assert header.metadata["llama.rope"] == (1, 2, 3)
        assert header.metadata["llama.scale"] == 0.5
        assert header.metadata["tokenizer.ggml.tokens"] == Array(8, 400)
        assert [t.size_bytes for t in header.tensors] == [272, 3 * 132 + 20, 20]
        assert header.tensors[1].shape == (256, 3)

    def test_a_private_type_as_last_tensor_ends_at_the_end_of_the_file(self, tmp_path: Path) -> None:
        layout = Layout({}, [("a.weight", (256, 8), "IQ4_KSS")])
        assert read_model(write(tmp_path / "a.gguf", layout)).tensors[0].size_bytes == 8 * 132

    def test_private_types_of_the_full_model_have_the_size_the_engine_gives_them(self, tmp_path: Path) -> None:
        found = read_model(write(tmp_path / "kss.gguf", qwen35_397b("IQ4_KSS")))
        sizes = {t.name: t.size_bytes for t in found.tensors}
        assert sizes["blk.7.ffn_up_exps.weight"] == 1026 << 20
        assert sizes["blk.7.ffn_down_exps.weight"] == 1032 << 20

    def test_the_full_model_has_the_size_the_engine_logs(self, full_size: Path) -> None:
        found = read_model(full_size)
        assert len(found.tensors) == 1098
        assert sum(t.size_bytes for t in found.tensors) / 2**20 == pytest.approx(217650.25, abs=0.01)

    def test_a_header_with_a_vocabulary_of_248320_tokens_takes_under_a_second(self, full_size: Path) -> None:
        started = time.perf_counter()
        assert read_model(full_size).metadata["tokenizer.ggml.tokens"].length == 248320
        assert time.perf_counter() - started < 1.0

    def test_json_carries_everything(self, tmp_path: Path) -> None:
        header = read_model(write(tmp_path / "small.gguf", SMALL)).headers[0]
        assert Header.from_json(json.loads(json.dumps(header.to_json()))) == header

    def test_a_node_runs_it_from_standard_input(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        command = [sys.executable, "-I", "-", str(paths[1])]
        done = subprocess.run(command, input=Path(gguf.__file__).read_bytes(), capture_output=True, check=True)
        assert tuple(map(Header.from_json, json.loads(done.stdout))) == read_set(paths).headers

    def test_a_node_says_in_one_line_what_is_wrong(self, tmp_path: Path) -> None:
        command = [sys.executable, "-I", "-", str(tmp_path / "none.gguf")]
        done = subprocess.run(command, input=Path(gguf.__file__).read_bytes(), capture_output=True, check=False)
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.decode().count("\n") == 1 and b"No such file" in done.stderr


class TestHeads:
    """The headers' own bytes, with which a model can be imitated where it is not."""

    def test_they_end_where_the_data_begin(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        found = read_set(paths)
        heads = gguf.read_heads(found)
        assert [len(head) for head in heads] == [header.data_offset for header in found.headers]
        assert all(path.read_bytes().startswith(head) for path, head in zip(paths, heads, strict=True))
        assert read(heads[0], paths[0].stat().st_size).tensors == found.headers[0].tensors

    def test_a_file_that_is_gone_or_cut_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "model.gguf", SMALL)
        found = read_set([path])
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(GgufError, match="changed while it was read; try again"):
            gguf.read_heads(found)
        path.unlink()
        with pytest.raises(GgufError, match="No such file or directory; name an existing"):
            gguf.read_heads(found)


class TestSplitSets:
    def test_names_follow_from_any_shard(self) -> None:
        names = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
        assert all(split_names(name) == names for name in names)
        assert split_names("m.gguf") == ["m.gguf"]

    def test_a_shard_beyond_its_count_is_refused(self) -> None:
        with pytest.raises(GgufError, match="00004 of 00003"):
            split_names("m-00004-of-00003.gguf")

    def test_a_set_is_one_model(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        found = read_model(paths[2])
        assert [t.name for t in found.tensors] == ["a.weight", "b.weight", "c.weight"]
        assert found.metadata["general.architecture"] == "llama"
        assert found.size_bytes == sum(path.stat().st_size for path in paths)

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        paths[1].unlink()
        with pytest.raises(GgufError, match=r"model-00002-of-00003[.]gguf: No such file"):
            read_model(paths[0])

    @pytest.mark.parametrize("order", [[0, 1], [1, 0, 2], [0, 0, 2], [0, 1, 2, 2]])
    def test_a_wrong_selection_is_refused(self, tmp_path: Path, order: list[int]) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        with pytest.raises(GgufError, match="shards"):
            read_set([paths[index] for index in order])

    def test_swapped_files_are_refused(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        paths[1].rename(tmp_path / "x")
        paths[2].rename(paths[1])
        (tmp_path / "x").rename(paths[2])
        with pytest.raises(GgufError, match="does not hold shard 2 of 3"):
            read_model(paths[0])

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_counts_that_contradict_each_other_are_refused(self, tmp_path: Path, count: int) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        metadata = {"split.no": 1, "split.count": count, "split.tensors.count": 3}
        paths[1].write_bytes(encoded(metadata, []))
        with pytest.raises(GgufError, match="does not hold shard 2 of 3"):
            read_model(paths[0])

    def test_a_renamed_shard_is_refused(self, tmp_path: Path) -> None:
        path = write_split(tmp_path, SMALL, 3)[0].rename(tmp_path / "model.gguf")
        with pytest.raises(GgufError, match="3 shards by its header and 1 by its name"):
            read_model(path)

    def test_a_set_with_a_wrong_total_is_refused(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, SMALL, 3)
        paths[2].write_bytes(encoded({"split.no": 2, "split.count": 3, "split.tensors.count": 3}, []))
        with pytest.raises(GgufError, match="should come with 3 tensors, its set has 2"):
            read_model(paths[0])


def header_with(key: str, type_id: int, value: bytes) -> bytes:
    name = key.encode()
    head = struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(name))
    return head + name + struct.pack("<I", type_id) + value


def header_of(*table: Tensor, alignment: int = 32) -> bytes:
    return encoded({"general.alignment": alignment}, table)


class TestHostileFiles:
    def test_other_files_are_refused(self) -> None:
        assert "begin with GGUF" in refused(b"PK\x03\x04" + bytes(100))
        assert "version 1" in refused(struct.pack("<4sIQQ", b"GGUF", 1, 0, 0))
        assert "version 50331648" in refused(struct.pack(">4sIQQ", b"GGUF", 3, 0, 0))
        refused(b"")

    def test_every_truncation_is_refused(self, tmp_path: Path) -> None:
        data = write(tmp_path / "small.gguf", Layout(SMALL.metadata, SMALL.rows, 5)).read_bytes()
        for size in range(len(data) - 32):
            refused(data[:size])

    def test_a_stream_that_ends_before_its_size_is_refused(self) -> None:
        assert "ends inside its header" in refused(header_of()[:40], 1 << 40)

    @pytest.mark.parametrize("counts", [(2**60, 0), (0, 2**60), (2**17 + 1, 0), (0, 2**16 + 1)])
    def test_absurd_counts_are_refused(self, counts: tuple[int, int]) -> None:
        assert "claims" in refused(struct.pack("<4sIQQ", b"GGUF", 3, *counts), 1 << 50)

    def test_strings_and_arrays_of_2_to_the_60_are_refused_at_once(self) -> None:
        huge = struct.pack("<Q", 2**60)
        started = time.perf_counter()
        tracemalloc.start()
        refused(header_with("a", 8, huge), 1 << 62)
        refused(header_with("a", 9, struct.pack("<IQ", 4, 2**60)), 1 << 62)
        refused(header_with("a", 9, struct.pack("<IQ", 8, 1) + huge), 1 << 62)
        refused(header_with("a", 9, struct.pack("<IQ", 8, 2**60) + bytes(1 << 20)), 1 << 62)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()
        assert time.perf_counter() - started < 2.0

    def test_an_endless_array_of_empty_strings_stops_at_the_header_limit(self) -> None:
        class Zeros(BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                return super().read(size) or bytes(size or 0)

        head = header_with("a", 9, struct.pack("<IQ", 8, 2**60))
        started = time.perf_counter()
        with pytest.raises(GgufError, match="reaches beyond 67108864 bytes"):
            read_header(Zeros(head), 1 << 62, "model.gguf")
        assert time.perf_counter() - started < 10.0

    def test_arrays_of_arrays_and_unknown_types_are_refused(self) -> None:
        assert "array of type 9" in refused(header_with("a", 9, struct.pack("<IQ", 9, 1)))
        assert "unknown type 13" in refused(header_with("a", 13, bytes(8)))

    def test_a_line_break_in_a_file_does_not_break_the_message(self) -> None:
        assert "unknown type" in refused(header_with("a\nb\x1b", 77, b""))

    def test_a_key_given_twice_is_refused(self) -> None:
        entry = struct.pack("<Q1sIB", 1, b"a", 0, 7)
        assert "twice" in refused(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + 2 * entry)

    @pytest.mark.parametrize("alignment", [0, 3, 1 << 31])
    def test_an_impossible_alignment_is_refused(self, alignment: int) -> None:
        assert "alignment" in refused(header_of(alignment=alignment))

    def test_a_tensor_named_twice_is_refused(self) -> None:
        table = Tensor("a", (8,), 0, 0, 32), Tensor("a", (8,), 0, 32, 32)
        assert "names a tensor twice" in refused(header_of(*table) + bytes(64))

    @pytest.mark.parametrize(("type_id", "offset"), [(0, 0), (0, 32), (999, 0)])
    def test_overlapping_tensors_are_refused(self, type_id: int, offset: int) -> None:
        table = Tensor("a", (16,), type_id, 0, 0), Tensor("b", (8,), 0, offset, 0)
        assert "overlaps" in refused(header_of(*table) + bytes(200))

    @pytest.mark.parametrize("offset", [64, 1 << 40, (1 << 64) - 32])
    def test_a_tensor_outside_the_file_is_refused(self, offset: int) -> None:
        assert "beyond the file's end" in refused(header_of(Tensor("a", (8,), 0, offset, 0)) + bytes(64))

    def test_an_unaligned_tensor_is_refused(self) -> None:
        assert "alignment" in refused(header_of(Tensor("a", (8,), 0, 8, 0)) + bytes(64))

    @pytest.mark.parametrize("shape", [(), (0,), (1, 1, 1, 1, 1), (2**40, 2**40), (33, 2)])
    def test_an_impossible_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        message = refused(header_of(Tensor("a", shape, 8, 0, 0)) + bytes(64))
        assert "dimensions" in message or "impossible shape" in message

    @settings(max_examples=300, deadline=2000)
    @given(st.data())
    def test_no_damage_leads_to_another_error_than_a_named_one(self, data: st.DataObject) -> None:
        whole = bytearray(encoded(SMALL.metadata, as_set(SMALL).tensors) + bytes(1024))
        for _ in range(data.draw(st.integers(1, 6))):
            where = data.draw(st.integers(0, len(whole) - 8))
            size = data.draw(st.sampled_from([1, 2, 4, 8]))
            whole[where : where + size] = data.draw(st.binary(min_size=size, max_size=size))
        try:
            header = read(bytes(whole), data.draw(st.sampled_from([len(whole), 1 << 40])))
        except GgufError as error:
            assert "\n" not in str(error)
        else:
            ends = [0]
            for tensor in sorted(header.tensors, key=lambda t: t.offset):
                assert tensor.size_bytes > 0 and tensor.offset >= ends[-1]
                ends.append(tensor.offset + tensor.size_bytes)
            assert header.data_offset + ends[-1] <= header.file_size_bytes
