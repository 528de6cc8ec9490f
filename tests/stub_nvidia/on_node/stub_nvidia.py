"""What the stub of NVIDIA's cards is, on the node: one value a file below /var/lib/stub-nvidia.

`stub-nvidia KEY=VALUE ...` sets values, `stub-nvidia` alone puts the defaults back.
"""

import os
import shutil
import sys
from pathlib import Path

STATE = Path("/var/lib/stub-nvidia")
PCI, MODULES = Path("/sys/bus/pci/devices"), Path("/sys/module")
NAME, VRAM_MIB = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887
ADDRESSES = ["0000:01:00.0", "0000:c1:00.0", "0000:c2:00.0", "0000:e1:00.0"]
DEFAULTS = {
    "bus": "2",  # cards on the PCI bus
    "cards": "2",  # cards that answer; those after them have fallen off the bus
    "used_mib": "4096",  # of each card
    "link": "32.0 GT/s PCIe",  # as /sys/bus/pci says it
    "width": "16",
    "smi": "",  # a fault of nvidia-smi: mismatch, no-driver, no-devices, lost, hang
    "ctk": "",  # a fault of nvidia-ctk: fails, ignores-flags
    "cuda_error": "0",  # what cuInit answers, if nothing worse is the matter
    "cuda_version": "13000",
    "secure_boot": "off",  # whether the firmware refuses modules that nobody signed
    "driver": "",  # what has the cards while nvidia has not: nouveau
    "persistence": "0",
    "power_w": "600 600 600 600",  # limit of each card
}
BUSY = {
    "class": "0x030200", "vendor": "0x10de", "device": "0x2bb1", "subsystem_vendor": "0x10de",
    "subsystem_device": "0x204b", "numa_node": "-1", "max_link_speed": "32.0 GT/s PCIe", "max_link_width": "16",
    # Registers, the memory through a window that holds all of it (resizable BAR), and the rest.
    "resource": "0x00000000b0000000 0x00000000b3ffffff 0x0000000000040200\n"
    "0x0000004000000000 0x0000005fffffffff 0x000000000014220c\n"
    "0x0000000000000000 0x0000000000000000 0x0000000000000000",
}  # fmt: skip
# What a careless look takes for a card: its sound, and the display of the board's own controller.
OTHERS = {
    "0000:01:00.1": {"class": "0x040300", "vendor": "0x10de", "device": "0x22e8"},
    "0000:62:00.0": {"class": "0x030000", "vendor": "0x1a03", "device": "0x2000"},
}


def get(key: str) -> str:
    """A value of the state."""
    try:
        return (STATE / key).read_text().strip()
    except FileNotFoundError:
        return DEFAULTS[key]


def put(key: str, value: str) -> None:
    """Set a value; processes that read meanwhile see the old one or the new one."""
    if key not in DEFAULTS:
        sys.exit(f"stub-nvidia: there is no {key}, but {', '.join(DEFAULTS)}")
    STATE.mkdir(exist_ok=True)
    new = STATE / f".{key}"
    new.write_text(f"{value}\n")
    new.rename(STATE / key)


def loaded(name: str = "nvidia") -> str:
    """Version of the module that is loaded, empty without one."""
    path = MODULES / name / "version"
    return path.read_text().strip() if path.exists() else ""


def is_closed() -> bool:
    """Whether the module that is loaded is the proprietary one."""
    return "P" in (MODULES / "nvidia/taint").read_text()


def write_bus() -> None:
    """Make the PCI bus as the state has it, below the tmpfs that covers the real one."""
    cards = dict.fromkeys(ADDRESSES[: int(get("bus"))], BUSY)
    for address in [*ADDRESSES, *OTHERS]:
        shutil.rmtree(PCI / address, ignore_errors=True)
    for address, texts in {**cards, **OTHERS}.items():
        device = PCI / address
        device.mkdir()
        if address in cards:
            texts = {**texts, "current_link_speed": get("link"), "current_link_width": get("width")}
            if driver := get("driver") or ("nvidia" if loaded() else ""):
                (device / "driver").symlink_to(f"../../drivers/{driver}")
        for name, text in texts.items():
            (device / name).write_text(f"{text}\n")


def main(words: list[str]) -> None:
    """Set values, or put all of them back, and make the bus anew."""
    for key, value in dict(word.split("=", 1) for word in words).items() if words else DEFAULTS.items():
        put(key, value)
    write_bus()


if __name__ == "__main__":
    os.umask(0o022)
    main(sys.argv[1:])
