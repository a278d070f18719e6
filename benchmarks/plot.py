"""A plot of speed-ups from the results of `zoo.py`: an SVG that reads on light and on dark pages; needs nothing else.

usage: python benchmarks/plot.py --output PLOT.svg RESULTS.json ...

A bar is a model: the best peer's lower quartile over Whet's, with the interval that 95% of resampled runs fall into.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

NAMES = {
    "resnet50": "ResNet-50", "resnet18": "ResNet-18", "mobilenetv2_100": "MobileNetV2",
    "mobilenetv3_large_100": "MobileNetV3-large", "efficientnet_b0": "EfficientNet-B0",
    "efficientnet_b4": "EfficientNet-B4", "convnext_tiny": "ConvNeXt-tiny", "regnety_004": "RegNetY-400MF",
    "regnety_008": "RegNetY-800MF", "yolox_nano": "YOLOX-nano", "yolox_tiny": "YOLOX-tiny",
    "minilm": "MiniLM, 128 tokens",
    "bert_base": "BERT-base, 128 tokens", "vit_base_patch16_224": "ViT-B/16", "gpt2": "GPT-2, 256 tokens",
    "whisper_small_encoder": "Whisper-small encoder", "unet_half": "diffusion UNet, half width",
    "face_rfb_320": "face detector RFB-320", "magika_standard_v3_3": "Magika", "silero_vad": "Silero VAD",
}  # fmt: skip
PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch.compile": "torch.compile"}
WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 760, 190, 150, 24, 74, 34
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .small { font-size: 11px; fill: #57606a }
.title { font-size: 15px; font-weight: 600 } .grid { stroke: #d0d7de } .one { stroke: #24292f; stroke-width: 1.5 }
.ahead { fill: #1a7f5a } .behind { fill: #bc4c00 } .interval { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d } .one { stroke: #e6edf3 }
.ahead { fill: #3fb68b } .behind { fill: #f0883e } .interval { stroke: #e6edf3 } }
"""


def svg(rows: list[dict[str, Any]], notes: list[str]) -> str:
    """The plot of rows of `zoo.py`, the largest speed-up first, with lines of small print above it."""
    rows = sorted((r for r in rows if "speed_up" in r), key=lambda r: -r["speed_up"]["ratio"])
    most = max((r["speed_up"]["ratio"] for r in rows), default=1.0)
    limit = ceil(max(most, 1.5) * 4 + 0.2) / 4
    height, bottom = TOP + ROW * len(rows) + BOTTOM, TOP + ROW * len(rows)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(value, limit) / limit

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'role="img" aria-label="Speed-up of Whet over the best peer">',
        f"<style>{STYLE}</style>",
        '<text class="title" x="12" y="22">How many times as fast as the best peer</text>',
        *(f'<text class="small" x="12" y="{40 + 15 * i}">{escape(note)}</text>' for i, note in enumerate(notes)),
    ]
    ticks = [tick * 0.5 for tick in range(int(limit * 2) + 1)]
    for tick in ticks:
        kind = "one" if tick == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 6}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="small" x="{x(tick):.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}×</text>')
    for index, row in enumerate(rows):
        y = TOP + ROW * index
        found = row["speed_up"]
        stem = Path(row["model"]).stem
        kind = "ahead" if found["ratio"] >= 1 else "behind"
        middle = y + ROW / 2
        parts.append(f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(NAMES.get(stem, stem))}</text>')
        width = x(found["ratio"]) - LEFT
        parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" rx="2"/>')
        low, high = f"{x(found['low']):.1f}", f"{x(found['high']):.1f}"
        parts.append(f'<line class="interval" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>')
        label = f"{found['ratio']:.2f} over {PEERS.get(found['peer'], found['peer'])}"
        parts.append(
            f'<text class="small" x="{x(max(found["ratio"], found["high"])) + 7:.1f}" y="{middle + 4}">{label}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for path in arguments.results for row in json.loads(path.read_text())]
    rows = list({(row["model"], row.get("batch", 1), row["threads"]): row for row in rows}.values())
    versions = {
        e["engine"]: e["version"] for row in rows for e in row["engines"] if e["engine"] in PEERS and e["version"]
    }
    peers = ", ".join(
        f"{PEERS[name]} {version.partition('+')[0].partition('-')[0]}" for name, version in sorted(versions.items())
    )
    threads = "/".join(sorted({str(row["threads"]) for row in rows}))
    notes = [f"float32, batch 1, {threads} threads, {rows[0]['machine']}; lower quartiles, 95% intervals", peers]
    arguments.output.write_text(svg(rows, notes), encoding="utf-8")


if __name__ == "__main__":
    main()
