"""The dashboard gpu: what NVIDIA's DCGM exporter tells, where there is one."""

from __future__ import annotations

from grafana import Board, Panel
from shared import RED

WHERE = 'Hostname=~"$host", gpu=~"$gpu"'
LEGEND = "{{Hostname}} {{gpu}}"
use = [
    Panel(
        "Busy", "percent",
        "The share of time in which anything ran. High says little of how well; see the tensor cores.",
        {LEGEND: f"DCGM_FI_DEV_GPU_UTIL{{{WHERE}}}"}, most=100,
    ),
    Panel(
        "Tensor cores busy", "percentunit",
        "How well the hardware is used. Low while busy is high: small batches, or waiting for memory.",
        {LEGEND: f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{WHERE}}}"}, most=1,
    ),
    Panel(
        "Memory used", "percentunit",
        "Weights, keys and values. Above 97 % the next large request may fail: lower kv_memory or max_batch.",
        {LEGEND: f"DCGM_FI_DEV_FB_USED{{{WHERE}}} / (DCGM_FI_DEV_FB_USED{{{WHERE}}} + DCGM_FI_DEV_FB_FREE{{{WHERE}}})"},
        steps=[(0.97, RED)], most=1,
    ),
]  # fmt: skip
health = [
    Panel(
        "Temperature", "celsius", "Above 85 °C it slows itself down: see to its cooling.",
        {LEGEND: f"DCGM_FI_DEV_GPU_TEMP{{{WHERE}}}"}, steps=[(85, RED)],
    ),
    Panel("Power", "watt", "At its limit the clocks go down.", {LEGEND: f"DCGM_FI_DEV_POWER_USAGE{{{WHERE}}}"}),
    Panel(
        "Clock of the processors", "rotmhz", "Falls when it is too hot or at its power limit.",
        {LEGEND: f"DCGM_FI_DEV_SM_CLOCK{{{WHERE}}}"},
    ),
    Panel(
        "Last Xid", "short",
        "0 is none. 48, 63, 64, 74, 79, 94, 95: the hardware, drain the node. 13, 31, 43: a program, most often.",
        {LEGEND: f"DCGM_FI_DEV_XID_ERRORS{{{WHERE}}}"}, "stat", steps=[(1, RED)],
    ),
    Panel(
        "Over PCIe", "Bps", "Sent and received. High while a model loads; else it should be low.",
        {
            f"{LEGEND} sent": f"DCGM_FI_PROF_PCIE_TX_BYTES{{{WHERE}}}",
            f"{LEGEND} received": f"DCGM_FI_PROF_PCIE_RX_BYTES{{{WHERE}}}",
        },
    ),
]  # fmt: skip
BOARD = Board(
    "gpu", "Quintet / GPU", {"Use": use, "Health": health},
    {
        "host": "label_values(DCGM_FI_DEV_GPU_TEMP, Hostname)",
        "gpu": 'label_values(DCGM_FI_DEV_GPU_TEMP{Hostname=~"$host"}, gpu)',
    },
)  # fmt: skip
