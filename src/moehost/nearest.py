"""What would make a request fit that takes too much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from moehost.model import KV_BYTES
from moehost.request import BATCH, UBATCHES, Request


def nearest(request: Request, longest: int, fits: Callable[..., bool]) -> Iterator[str]:
    """Changes of the request that make it fit, each alone; where none does, the smallest settings together.

    + longest: the context that is asked for, in tokens
    + fits: whether the request fits with these changes
    """

    def largest_context(**changes: Any) -> int:
        """The largest context that fits, in steps of 1024 tokens; 0 where none does."""
        low, high = 0, longest // 1024
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(context=middle * 1024, **changes) else (low, middle - 1)
        return low * 1024

    if request.placement != "auto" and fits(placement="auto"):
        yield "placement auto"
    elif request.workers and request.placement != "rpc" and fits(placement="rpc"):
        yield "placement rpc"
    smaller = [u for u in reversed(UBATCHES) if u < (request.ubatch or BATCH)]
    if request.ubatch or request.placement != "auto":
        yield from [f"ubatch {u}" for u in smaller if fits(ubatch=u)][:1]
    q8 = {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}
    can_shrink = KV_BYTES[request.kv_type_k] + KV_BYTES[request.kv_type_v] > 2 * KV_BYTES["q8_0"]
    if can_shrink and fits(**q8):
        yield "KV type q8_0"
    if context := largest_context():
        yield f"context {context}"
    elif context := largest_context(ubatch=UBATCHES[0], **q8):
        yield f"ubatch {UBATCHES[0]}, KV type q8_0 and context {context} together"
