#!/usr/bin/python3
"""A stub of nvidia-ctk @VERSION@: writes specifications as the real one does, for the cards of `stub_nvidia`."""

import os
import re
import sys
from pathlib import Path

import stub_nvidia

VERSION = "@VERSION@"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
NO_GIDS = "no-additional-gids-for-device-nodes"


def say(level: str, text: str) -> None:
    """A line of the log, which goes to standard error."""
    print(f'time="2026-01-01T00:00:00Z" level={level} msg="{text}"', file=sys.stderr)


def has_gids(flags: list[str]) -> bool:
    """Whether device nodes come with groups, which makes it a specification of CDI 0.7.0: since 1.19, unless not."""
    if stub_nvidia.get("ctk") == "ignores-flags":
        flags = []
    return tuple(map(int, VERSION.split(".")[:2])) >= (1, 19) and NO_GIDS not in flags


def specification(flags: list[str]) -> str:
    """The specification for the cards that answer, with the libraries of the driver that is loaded."""
    driver = stub_nvidia.loaded()
    cards = range(int(stub_nvidia.get("cards")))
    groups = "    additionalGids:\n    - 44\n" if has_gids(flags) else ""
    lines = ["---", f"cdiVersion: {'0.7.0' if has_gids(flags) else '0.5.0'}", "containerEdits:", "  deviceNodes:"]
    lines += [f"  - path: /dev/{each}" for each in ("nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools", "nvidiactl")]
    lines += ["  env:", "  - NVIDIA_CTK_LIBCUDA_DIR=/usr/lib/x86_64-linux-gnu", "  - NVIDIA_VISIBLE_DEVICES=void"]
    lines += ["  hooks:"]
    for words in (
        ["create-symlinks", "--link", "libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so"],
        ["enable-cuda-compat", f"--host-driver-version={driver}"],
        ["update-ldcache", "--folder", LIBRARIES],
    ):
        lines += ["  - args:", "    - nvidia-cdi-hook", *(f"    - {word}" for word in words), "    env:"]
        lines += [
            "    - NVIDIA_CTK_DEBUG=false",
            "    hookName: createContainer",
            "    path: /usr/bin/nvidia-cdi-hook",
        ]
    lines += ["  mounts:"]
    for path in (f"{LIBRARIES}/libcuda.so.{driver}", f"{LIBRARIES}/libnvidia-ml.so.{driver}", "/usr/bin/nvidia-smi"):
        lines += [f"  - containerPath: {path}", f"    hostPath: {path}", "    options:"]
        lines += [f"    - {option}" for option in ("ro", "nosuid", "nodev", "rbind", "rprivate")]
    lines += ["devices:"]
    for device, nodes in [*((str(index), [index]) for index in cards), ("all", list(cards))]:
        lines += ["- containerEdits:", *groups.splitlines(), "    deviceNodes:"]
        lines += [f"    - path: /dev/nvidia{node}" for node in nodes] + [f'  name: "{device}"']
    return "\n".join([*lines, "kind: nvidia.com/gpu", ""])


def generate(options: dict[str, str]) -> None:
    """Write the specification where options or environment say."""
    if not stub_nvidia.loaded() or stub_nvidia.get("ctk") == "fails":
        say("error", "failed to generate CDI spec: failed to create device CDI specs: ERROR_DRIVER_NOT_LOADED")
        sys.exit(1)
    flags = options.get("--feature-flags") or os.environ.get("NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS", "")
    output = options.get("--output") or os.environ.get("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", "")
    text = specification(flags.split(","))
    if not output:
        print(text, end="")
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)
    say("info", f"Generated CDI spec with version {text.split()[2]}")


def listing() -> None:
    """Print the devices of all specifications."""
    found: dict[str, None] = {}
    for folder in (Path("/etc/cdi"), Path("/var/run/cdi")):
        for path in sorted(folder.glob("*.yaml")):
            kind = re.search(r"^kind: (\S+)$", path.read_text(), re.MULTILINE)
            names = re.findall(r'^  name: "?([^"\n]+)"?$', path.read_text(), re.MULTILINE)
            found |= {f"{kind[1]}={name}": None for name in names} if kind else {}
    say("info", f"Found {len(found)} CDI devices")
    print("".join(f"{name}\n" for name in sorted(found)), end="")


def main(words: list[str]) -> None:
    """Do what the words ask for."""
    pairs = [word.split("=", 1) for word in words if word.startswith("--") and "=" in word]
    if "--version" in words:
        print(f"NVIDIA Container Toolkit CLI version {VERSION}\ncommit: stub")
    elif "generate" in words:
        generate(dict(pairs))
    elif "list" in words:
        listing()
    elif "config" not in words and "runtime" not in words:
        sys.exit(f"stub of nvidia-ctk: does not know {' '.join(words)}")


if __name__ == "__main__":
    os.umask(0o022)
    main(sys.argv[1:])
