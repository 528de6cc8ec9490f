"""What machines of this class really do, by published runs: the constants of the speed model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constants:
    """What a machine of this class really does, as shares of what its parts nominally do.

    + cpu_share, gpu_share: share of the nominal memory bandwidth that decode reaches
    + cpu_layer_s, gpu_layer_s: cost of one layer of routed experts beside its bytes: `a` and `g` above
    + attention_s, recurrent_s: overhead of one layer whose dense part is on a GPU
    + cpu_only_layer_s: the same where there is no GPU
    + prompt_cpu_share: share of the memory bandwidth at which a chunk goes once through all experts on the CPU
    + core_flop_s: what one physical core computes of a prompt
    + gpu_flop_per_byte: what a GPU computes of a prompt, by its memory bandwidth
    + prompt_cpu_factor, prompt_gpu_factor: measured time over predicted time, 1 unless calibrated
    + saving_low, saving_high: how far a layer's saving by moving to a GPU may be from the prediction
    + spread: relative half-width of a prediction at least; 0 lets it follow from how alike the machine is
    + source: where they come from
    """

    cpu_share: float
    gpu_share: float
    cpu_layer_s: float
    gpu_layer_s: float
    attention_s: float
    recurrent_s: float
    cpu_only_layer_s: float
    prompt_cpu_share: float
    core_flop_s: float
    gpu_flop_per_byte: float
    prompt_cpu_factor: float
    prompt_gpu_factor: float
    saving_low: float
    saving_high: float
    spread: float
    source: str


# Fitted by least squares or by hand to runs that others have published, all of ik_llama.cpp on an EPYC 9175F
# (12 x DDR5-6400, 614.4 GB/s) with RTX PRO 6000 cards (1792 GB/s), unless another machine is named:
# - 360 of 614.4 GB/s and 90 us per layer: GLM-5.1 IQ3_KS with 0, 14 and 22 of 75 layers moved (0.20 and 0.32 ms a
#   layer) and GLM-4.7-Flash IQ5_K hybrid against full GPU (0.107 ms a layer). Qwen3.5-397B Q6_K on an EPYC 7713 with
#   DDR4-2933 fits 68 to 84 % of its nominal bandwidth.
# - 1200 of 1792 GB/s and 40 us per layer: device copies of 1375 to 1490 GB/s, less what kernels lose.
# - 0.12 ms for an attention layer: what GLM-5.1 (53.09 ms a token) and GLM-4.7-Flash (10.06 ms) leave unexplained.
# - 0.386 ms for a recurrent layer: makes Qwen3.5-397B IQ4_NL with all experts on the CPU the measured 22.5 tok/s. The
#   engine of that run is older than the fused delta net; 0.1 to 0.26 ms are plausible today.
# - 0.6 ms a layer without a GPU: Kimi-K2.5 Q4_K_S 10 to 13 tok/s, GLM-4.7-Flash 20.2 tok/s.
# - prompts: 550, 1124 and 1125 tokens took 2.34 s + 4.24 ms a token on 16 cores; full chunks of 2048 took 4.83 and
#   5.03 s, of which 217.4 GB over PCIe at 52 GB/s are 4.18 s.
PUBLISHED = Constants(
    cpu_share=360 / 614.4,
    gpu_share=1200 / 1792,
    cpu_layer_s=90e-6,
    gpu_layer_s=40e-6,
    attention_s=0.12e-3,
    recurrent_s=0.386e-3,
    cpu_only_layer_s=0.6e-3,
    prompt_cpu_share=94.1 / 614.4,
    core_flop_s=234e9,
    gpu_flop_per_byte=53.0,
    prompt_cpu_factor=1.0,
    prompt_gpu_factor=1.0,
    saving_low=0.65,
    saving_high=1.15,
    spread=0.0,
    source="published runs of Qwen3.5-397B, GLM-5.1 and GLM-4.7-Flash on an EPYC 9175F with RTX PRO 6000",
)
