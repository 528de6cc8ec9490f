"""What was decided for a model on a machine, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moehost.engine import Offload
from moehost.ledger import Row
from moehost.memory_policy import Pages
from moehost.speed import Load, Prompts, Range


@dataclass(frozen=True)
class Placement:
    """A decision: what the engine is told, where the experts lie, the ledger, the prediction, and why.

    `experts` names the layers by device; `prompt_tok_s` is predicted for prompts of these lengths; `is_interleaved`
    and `pages` say how the server's memory is spread over NUMA nodes, and on which huge pages it is to lie.
    """

    offload: Offload
    env: dict[str, str]
    is_interleaved: bool
    pages: Pages | None
    experts: dict[str, tuple[int, ...]]
    layer_devices: tuple[str, ...]
    rows: tuple[Row, ...]
    load: Load
    prompts: Prompts
    decode: Range
    prompt_tok_s: dict[int, float]
    answer_s: float
    warnings: tuple[str, ...]
    why: tuple[str, ...]

    @property
    def host_mib(self) -> int:
        """What the server takes of the host's memory before it caches prompts."""
        row = self.rows[-1]
        return self.host_weights_mib + row.kv_mib + row.state_mib + row.compute_mib

    @property
    def host_weights_mib(self) -> int:
        """What of that is weights."""
        return self.rows[-1].dense_mib + self.rows[-1].experts_mib

    @property
    def offload_tokens(self) -> int | None:
        """Tokens of a prompt from which the experts in RAM are carried to a card; None where they never are."""
        reaches = self.prompts.threshold <= self.prompts.ubatch
        return self.prompts.threshold if self.load.gpus and self.load.cpu_experts_total_bytes and reaches else None

    @property
    def warm_up_tokens(self) -> list[int]:
        """Lengths of the prompts that warm the server up, ascending, all of which leave a slot room for an answer.

        A short one, half a ubatch, and more than one ubatch; where chunks may go to a card, also the longest that
        stays on the CPU, since the two ways share few buffers and kernels.
        """
        ubatch, threshold = self.prompts.ubatch, self.prompts.threshold
        lengths = [16, ubatch // 2, ubatch + 16]
        if self.offload_tokens and lengths[0] < threshold:
            lengths.append(threshold - 1)
        longest = self.offload.context // self.offload.parallel - 64
        return sorted({min(tokens, longest) for tokens in lengths})

    def to_json(self, engine: str, argv: Sequence[str]) -> dict[str, Any]:
        """The plan contract; `argv` is what the engine of this dialect is started with."""
        return {
            "engine": engine,
            "argv": list(argv),
            "env": self.env,
            "experts": {device: list(layers) for device, layers in self.experts.items()},
            "ledger": [row.to_json() for row in self.rows],
            "prediction": {
                "decode_tok_s": round(self.decode.expected, 1),
                "decode_low": round(self.decode.low, 1),
                "decode_high": round(self.decode.high, 1),
                "prompt_tok_s": {str(tokens): round(rate, 1) for tokens, rate in self.prompt_tok_s.items()},
                "offload_tokens": self.offload_tokens,
            },
            "warnings": list(self.warnings),
        }
