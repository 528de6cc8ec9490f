"""What `moehost.rehearse` is asked to try, and what it answers: shared by the controller and the program on a node.

Standard library only at run time.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moehost.gguf import GgufSet

_NAME = re.compile(r"[\w.+-]+[.]gguf")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a model: how many of its bytes are header, and how many it has."""

    name: str
    header_bytes: int
    size_bytes: int


def shards(found: GgufSet) -> tuple[Shard, ...]:
    """The shards of a model as a job names them; their headers' bytes come from `gguf.read_heads` or `remote`'s."""
    return tuple(Shard(Path(h.name).name, h.data_offset, h.file_size_bytes) for h in found.headers)


@dataclass(frozen=True)
class Job:
    """What to try.

    + engine, argv, env: the llama-server of the node, and the plan's arguments and environment
    + shards, headers: the files to imitate, and the file that holds their headers one after the other; without
      shards, the model that `argv` names is there and is tried itself
    + folder: where the sparse files go; None for the system's folder for temporary files
    + overcommit: whether vm.overcommit_memory may be set to 1 meanwhile
    """

    engine: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    headers: str | None = None
    folder: str | None = None
    timeout_s: float = 300
    overcommit: bool = False

    def to_json(self) -> str:
        """The text that `parse` reads."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def parse(cls, text: str) -> Job:
        """Reads and checks a job as far as that needs no disk; raises ValueError."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("is no JSON object; see --help for an example")
        try:
            rows = [Shard(**row) for row in data.get("shards", ())]
            job = cls(**{**data, "argv": tuple(data["argv"]), "shards": tuple(rows)})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"lacks something or has too much ({error}); see --help for an example") from None
        if not job.engine.startswith("/") or not all(isinstance(word, str) for word in job.argv):
            raise ValueError("engine must be an absolute path, and argv a list of texts")
        if "-m" not in job.argv[:-1]:
            raise ValueError("argv names no model; give it as '-m', 'MODEL.gguf'")
        if bool(job.shards) is not bool(job.headers):
            raise ValueError("shards and headers belong together; give both or none")
        for shard in job.shards:
            if not _NAME.fullmatch(shard.name):
                raise ValueError(f"shard {shard.name[:80]!r}: is no plain name of a .gguf file")
            if not 0 < shard.header_bytes <= shard.size_bytes:
                raise ValueError(f"shard {shard.name}: its header does not fit into {shard.size_bytes} bytes")
        return job


@dataclass(frozen=True)
class Result:
    """How it went; `refusal` is None when the buffers stand, else one line, `status` that of an engine that ended."""

    refusal: str | None
    log: str
    status: int | None
    elapsed_s: float

    def to_json(self) -> str:
        """The object that `parse` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Result:
        """Reads what the program has printed on a node."""
        return cls(**json.loads(text))
