#!/usr/bin/python3
"""A stub of nvidia-smi @VERSION@: formats and exit codes of the real one, cards of `stub_nvidia`."""

import re
import sys
import time
from datetime import datetime

import stub_nvidia
from stub_nvidia import ADDRESSES, NAME, VRAM_MIB, get

VERSION = "@VERSION@"
MIN_W, MAX_W = 150.0, 600.0
FAULTS = {
    "mismatch": (
        18,
        f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {VERSION[:6]}",
    ),
    "no-driver": (
        9,
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
        "NVIDIA driver is installed and running.\n",
    ),
    "no-devices": (6, "No devices were found"),
    "lost": (255, "Unable to determine the device handle for GPU0000:C1:00.0: Unknown Error"),
}


def fault() -> str:
    """What is the matter, by a name of FAULTS; empty if nothing is."""
    if named := get("smi"):
        return named
    if not stub_nvidia.loaded():
        return "no-driver"
    if stub_nvidia.loaded() != VERSION:
        return "mismatch"
    # The closed modules load on a machine with Blackwell cards, and find none.
    return "no-devices" if stub_nvidia.is_closed() or get("cards") == "0" else ""


def card(index: int) -> dict[str, str]:
    """The fields of a card, by the names of --query-gpu."""
    used = get("used_mib").split()
    used_mib = int(used[min(index, len(used) - 1)])
    generation = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5}[get("link").split()[0]]
    address = f"0000{ADDRESSES[index].upper()}"
    return {
        "index": str(index), "count": get("cards"), "name": NAME, "gpu_name": NAME,
        "uuid": (uuid := f"GPU-{index:08x}-5707-0000-0000-000000000000"), "gpu_uuid": uuid, "serial": f"15700{index}",
        "pci.bus_id": address, "gpu_bus_id": address, "pci.domain": "0x0000", "pci.bus": f"0x{address[9:11]}",
        "pci.device": "0x00", "pci.device_id": "0x2BB110DE", "pci.sub_device_id": "0x204B10DE",
        "pcie.link.gen.current": str(generation), "pcie.link.gen.gpucurrent": str(generation),
        "pcie.link.gen.max": "5", "pcie.link.gen.gpumax": "5", "pcie.link.gen.hostmax": "5",
        "pcie.link.width.current": get("width"), "pcie.link.width.max": "16",
        "driver_version": VERSION, "vbios_version": "98.02.4B.00.05", "compute_cap": "12.0",
        "memory.total": f"{VRAM_MIB} MiB", "memory.reserved": "637 MiB", "memory.used": f"{used_mib} MiB",
        "memory.free": f"{VRAM_MIB - 637 - used_mib} MiB",
        "power.limit": (limit := f"{float(get('power_w').split()[index]):.2f} W"), "enforced.power.limit": limit,
        "power.default_limit": f"{MAX_W:.2f} W", "power.min_limit": f"{MIN_W:.2f} W",
        "power.max_limit": f"{MAX_W:.2f} W", "power.draw": "14.02 W", "power.management": "Enabled",
        "persistence_mode": "Enabled" if get("persistence") == "1" else "Disabled", "temperature.gpu": "31",
        "fan.speed": "30 %", "utilization.gpu": "0 %", "utilization.memory": "0 %", "pstate": "P8",
        "clocks.sm": "180 MHz", "clocks.mem": "405 MHz", "ecc.mode.current": "Enabled",
        "ecc.errors.uncorrected.volatile.total": "0", "mig.mode.current": "Disabled", "compute_mode": "Default",
        "display_active": "Disabled", "timestamp": datetime.now().strftime("%Y/%m/%d %H:%M:%S.000"),
    }  # fmt: skip


def query(cards: list[dict[str, str]], fields: list[str], options: list[str]) -> None:
    """Print fields of cards as CSV."""
    for field in fields:
        if field not in card(0):
            print(f'Field "{field}" is not a valid field to query.\n')
            sys.exit(2)
    if "noheader" not in options:
        units = {field: re.search(r"\d (\S+)$", card(0)[field]) for field in fields}
        print(", ".join(f"{field} [{unit[1]}]" if unit else field for field, unit in units.items()))
    for each in cards:
        values = [each[field] for field in fields]
        if "nounits" in options:
            values = [re.sub(r"^([\d.]+) (MiB|W|MHz|%)$", r"\1", value) for value in values]
        print(", ".join(values))


def set_power(cards: list[dict[str, str]], watts: float) -> None:
    """Set the power limit of cards, if it is one that they take."""
    limits = get("power_w").split()
    for each in cards:
        if not MIN_W <= watts <= MAX_W:
            limits_w = f"{MIN_W:.2f} W and {MAX_W:.2f} W for GPU {each['pci.bus_id']}"
            print(f"Provided power limit {watts:.2f} W is not a valid power limit which should be between {limits_w}")
            print("Terminating early due to previous errors.")
            sys.exit(2)
        before, limits[int(each["index"])] = limits[int(each["index"])], f"{watts:g}"
        print(f"Power limit for GPU {each['pci.bus_id']} was set to {watts:.2f} W from {float(before):.2f} W.")
    stub_nvidia.put("power_w", " ".join(limits))
    print("All done.")


def set_persistence(cards: list[dict[str, str]], mode: str) -> None:
    """Set the persistence mode of all cards."""
    stub_nvidia.put("persistence", "1" if mode in ("1", "ENABLED") else "0")
    for each in cards:
        print(f"{card(int(each['index']))['persistence_mode']} persistence mode for GPU {each['pci.bus_id']}.")
    print("All done.")


def cuda() -> str:
    """The CUDA version that the driver is good for."""
    version = int(get("cuda_version"))
    return f"{version // 1000}.{version % 1000 // 10}"


def log(cards: list[dict[str, str]]) -> None:
    """Print what matters of `-q -x`."""
    print('<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">\n<nvidia_smi_log>')
    print(f"\t<driver_version>{VERSION}</driver_version>\n\t<cuda_version>{cuda()}</cuda_version>")
    print(f"\t<attached_gpus>{len(cards)}</attached_gpus>")
    for each in cards:
        print(
            f'\t<gpu id="{each["pci.bus_id"]}">\n\t\t<product_name>{NAME}</product_name>\n'
            f"\t\t<product_architecture>Blackwell</product_architecture>\n\t\t<uuid>{each['uuid']}</uuid>\n"
            f"\t\t<fb_memory_usage>\n\t\t\t<total>{each['memory.total']}</total>\n"
            f"\t\t\t<used>{each['memory.used']}</used>\n\t\t</fb_memory_usage>\n\t</gpu>"
        )
    print("</nvidia_smi_log>")


def table(cards: list[dict[str, str]]) -> None:
    """Print the table of a call without arguments, in its outlines."""
    rule = f"+{'-' * 89}+"
    print(f"{datetime.now():%a %b %d %H:%M:%S %Y}\n{rule}")
    print(f"| NVIDIA-SMI {VERSION:<22} Driver Version: {VERSION:<14} CUDA Version: {cuda():<9}|\n{rule}")
    for each in cards:
        memory = f"{each['memory.used']} / {each['memory.total']}".replace(" MiB", "MiB")
        upper = f"{each['index']:>4}  {NAME[:24]:<26} {each['pci.bus_id']} Off"
        lower = f" 30%   31C    P8   14W / {each['power.limit'].split('.')[0]}W  {memory:>24}"
        print(f"|{upper:<89}|\n|{lower:<89}|\n{rule}")


def main(words: list[str]) -> None:
    """Do what the words ask for, or say what is the matter."""
    if get("smi") == "hang":
        time.sleep(3600)
    if wrong := fault():
        code, says = FAULTS[wrong]
        print(says)
        sys.exit(code)
    options = dict(re.split(r"=", word, maxsplit=1) for word in words if word.startswith("--") and "=" in word)
    chosen = words[words.index("-i") + 1].split(",") if "-i" in words else options.get("--id", "").split(",")
    cards = [card(index) for index in range(int(get("cards")))]
    if chosen != [""]:
        cards = [each for each in cards if {each["index"], each["uuid"], each["pci.bus_id"]} & set(chosen)]
        if not cards:
            print("No devices were found")
            sys.exit(6)
    if "--query-gpu" in options:
        query(cards, options["--query-gpu"].split(","), options.get("--format", "").split(","))
    elif "-pl" in words:
        set_power(cards, float(words[words.index("-pl") + 1]))
    elif "-pm" in words:
        set_persistence(cards, words[words.index("-pm") + 1])
    elif "-L" in words:
        for each in cards:
            print(f"GPU {each['index']}: {NAME} (UUID: {each['uuid']})")
    elif "-x" in words:
        log(cards)
    else:
        table(cards)


if __name__ == "__main__":
    main(sys.argv[1:])
