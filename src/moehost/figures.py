"""The figures that a node tells of itself, by name: what each means. Standard library only.

Names follow prometheus.io/docs/practices/naming: base units, `_total` for counters.
"""

from __future__ import annotations

from moehost.exposition import Kind


def _gauge(text: str) -> Kind:
    return Kind("gauge", text)


def _counter(text: str) -> Kind:
    return Kind("counter", text)


# Needs a card.
CARDS = {
    "moehost_cards": _gauge("Cards that answer to nvidia-smi."),
    "moehost_cards_expected": _gauge("Cards that should answer."),
    "moehost_card_info": _gauge("A card: its address on the bus, product and driver; always 1."),
    "moehost_card_temperature_celsius": _gauge("Temperature of the card's processor."),
    "moehost_card_power_watts": _gauge("Power that the card draws."),
    "moehost_card_power_limit_watts": _gauge("Power limit that is in force."),
    "moehost_card_memory_used_bytes": _gauge("VRAM in use."),
    "moehost_card_memory_size_bytes": _gauge("VRAM of the card."),
    "moehost_card_utilization_ratio": _gauge("Share of time in which the card computed something."),
    "moehost_card_pcie_lanes": _gauge("Lanes of the link to the host that are in use."),
    "moehost_card_pcie_max_lanes": _gauge("Lanes that the link to the host could have."),
    "moehost_card_pcie_generation": _gauge("PCIe generation of the link; an idle card lowers it."),
    "moehost_card_pcie_max_generation": _gauge("PCIe generation that the link could have."),
    "moehost_card_slowed": _gauge("Whether the card runs with lower clocks for this reason."),
    "moehost_card_ecc_errors_total": _counter(
        "Memory errors, corrected or not, since the driver's start (volatile) and ever (aggregate)."
    ),
    "moehost_xid_lines": _gauge("Lines of the kernel's log of the last 14 days with this Xid."),
    "moehost_xid_last_time_seconds": _gauge("When this Xid was last written into the kernel's log."),
}
# Of each service.
SERVICES = {
    "moehost_service_ready": _gauge("Whether the server answers; one that is busy with a prompt does."),
    "moehost_service_start_time_seconds": _gauge("When the server's process was started; counters begin at 0 then."),
    "moehost_service_restarts_total": _counter("Restarts by systemd since the unit was last started by a person."),
    "moehost_service_memory_bytes": _gauge("Memory of the unit's control group."),
    "moehost_plan_memory_bytes": _gauge("What the plan's ledger puts on this device; `card` is empty for the host."),
    "moehost_scrape_success": _gauge("Whether the server told its figures; a busy one tells them late."),
    "moehost_scrape_duration_seconds": _gauge("How long the server took to tell its figures, or was waited for."),
    "moehost_prompt_tokens_total": _counter("Tokens of prompts that were computed, without those from a cache."),
    "moehost_prompt_seconds_total": _counter("Time spent on prompts."),
    "moehost_prompt_cached_tokens_total": _counter("Tokens of prompts that came from a cache."),
    "moehost_predicted_tokens_total": _counter("Tokens of answers."),
    "moehost_predicted_seconds_total": _counter("Time spent on answers."),
    "moehost_draft_tokens_total": _counter("Tokens that speculation proposed."),
    "moehost_draft_accepted_tokens_total": _counter("Tokens that speculation proposed and the model took."),
    "moehost_requests_processing": _gauge("Requests that are answered just now."),
    "moehost_requests_deferred": _gauge("Requests that wait for a slot."),
    "moehost_kv_cache_usage_ratio": _gauge("Share of the KV cache that is in use."),
}
NODE = {
    "moehost_telemetry_interval_seconds": _gauge("How often these figures are looked at."),
    "moehost_collector_success": _gauge("Whether a part of these figures could be collected."),
    "moehost_unit_state": _gauge("State of a unit: 1 for the one it is in."),
    "moehost_unit_state_change_time_seconds": _gauge("When the unit came into its state."),
    "moehost_reboot_required": _gauge("Whether packages wait for a reboot."),
    "moehost_reboot_required_time_seconds": _gauge("Since when a reboot is required."),
    "moehost_engine_info": _gauge("The engine's release that is current; always 1."),
    "moehost_models_free_bytes": _gauge("Free space of the models' disk."),
    "moehost_models_size_bytes": _gauge("Size of the models' disk."),
}
KINDS = {**NODE, **SERVICES, **CARDS}
# Not every server tells these: ik_llama.cpp has no counters of caches and drafts, llama.cpp no usage of its KV cache.
OF_SOME_ENGINES = (
    "moehost_prompt_cached_tokens_total",
    "moehost_draft_tokens_total",
    "moehost_draft_accepted_tokens_total",
    "moehost_kv_cache_usage_ratio",
)
