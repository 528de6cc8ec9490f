"""What `moehost.fetch` is asked to do: built by the role that provisions a node, read by the program on it.

Pure and standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import get_type_hints

from moehost import source as sources
from moehost.source import FileSource, Source


@dataclass(frozen=True)
class Job:
    """What to bring where.

    + source, revision: as `moehost.source.parse` reads them
    + sha256: checksums by file name; an https source needs all of them
    + endpoint, token_file: the hub that hf:// means, and the file that holds the token for it
    + connections: parallel ranges of a download, 1 to 16
    + reserve_mib: room that stays free on the disk
    + uploaded: the source's files are temporary ones, which are removed once the model stands
    + recorded_source: what the manifest names as source, where a temporary path would say nothing
    """

    model: str
    store: str
    source: str
    revision: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    endpoint: str = sources.HUB_ENDPOINT
    token_file: str | None = None
    connections: int = 8
    reserve_mib: int = 1024
    uploaded: bool = False
    recorded_source: str | None = None

    def to_json(self) -> str:
        """The text that `parse` reads."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def parse(cls, text: str) -> Job:
        """Reads and checks a job as far as that needs no disk and no network; raises ValueError."""
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError("it is no object")
            job = cls(**data)
        except (TypeError, ValueError) as error:
            reason = str(error).removeprefix(f"{cls.__name__}.__init__() ")
            raise ValueError(f"is no job: {reason}; see --help for an example") from None
        for key, kind in get_type_hints(cls).items():
            if not isinstance(getattr(job, key), dict if key == "sha256" else kind):
                raise ValueError(f"{key}: {getattr(job, key)!r} is of the wrong type; see --help for an example")
        sources.model_name(job.model)
        sources.require_safe(job.endpoint)
        sources.check_sha256(job.where, job.sha256)
        if isinstance(job.where, FileSource) and not job.where.folder.startswith("/"):
            raise ValueError(f"source {job.source!r}: is relative; upload the file and give its path on this machine")
        if job.uploaded and not isinstance(job.where, FileSource):
            raise ValueError(f"source {job.source!r}: is no upload; remove 'uploaded'")
        if not 1 <= job.connections <= 16:
            raise ValueError(f"connections: aria2 takes 1 to 16, not {job.connections}")
        return job

    @property
    def where(self) -> Source:
        """The source, understood."""
        return sources.parse(self.source, self.revision)

    @property
    def label(self) -> str:
        """What the manifest names as source."""
        return self.recorded_source or self.source
