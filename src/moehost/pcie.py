"""Runs on a node: ``python3 pcie.py`` says how fast each card takes pinned memory of the host, as JSON.

Standard library only: the driver's own libcuda is asked through ctypes, so that no toolkit is needed.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

BYTES = 256 << 20
TIMES = 10
NAME_BYTES = 100


class CudaError(RuntimeError):
    """A call of the driver that failed, and its number."""


def cards(library: ctypes.CDLL, size: int = BYTES, times: int = TIMES) -> list[dict[str, object]]:
    """Each card with its best rate, GB/s; a context and `size` bytes of pinned memory are there meanwhile.

    Raises CudaError.
    """

    def call(function: str, *arguments: object) -> None:
        if result := getattr(library, function)(*arguments):
            raise CudaError(f"{function} answers with error {result}")

    call("cuInit", 0)
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    found: list[dict[str, object]] = []
    for index in range(count.value):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        there, here = ctypes.c_uint64(), ctypes.c_void_p()
        said = ctypes.create_string_buffer(NAME_BYTES)
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDeviceGetName", said, NAME_BYTES, device)
        call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
        try:
            call("cuMemHostAlloc", ctypes.byref(here), ctypes.c_size_t(size), 0)
            call("cuMemAlloc_v2", ctypes.byref(there), ctypes.c_size_t(size))
            ctypes.memset(here, 1, size)
            seconds = []
            for _ in range(times):
                began = time.perf_counter()
                call("cuMemcpyHtoD_v2", there, here, ctypes.c_size_t(size))
                call("cuCtxSynchronize")
                seconds.append(time.perf_counter() - began)
        finally:
            call("cuCtxDestroy_v2", context)  # and with it both memories
        found.append({"card": said.value.decode(), "host_to_device_gb_s": round(size / min(seconds) / 1e9, 2)})
    return found


def main() -> int:
    """Print a list of cards; none where there is no driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        print("[]")
        return 0
    try:
        print(json.dumps(cards(library)))
    except (CudaError, AttributeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
