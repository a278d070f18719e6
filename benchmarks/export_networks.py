"""Write networks that the shared zoo does not hold as graphs without weights: benchmarks/networks/*.onnx.

usage: python benchmarks/export_networks.py [--output FOLDER] [NAME ...]

Runs in an environment of its own (Python 3.11), since nothing here but this file needs it:

    python -m venv exporter
    exporter/bin/pip install torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2
    exporter/bin/pip install safetensors pyyaml huggingface_hub loguru tabulate tqdm thop psutil pillow
    exporter/bin/pip install --no-deps timm==1.0.31 torchvision==0.28.0 pixeltable-yolox==0.4.3 \
        pycocotools opencv-python-headless

No weights are downloaded. Model code and licences: timm (ResNet, MobileNet, ConvNeXt, RegNet), Apache-2.0; YOLOX, by
Megvii, as pixeltable-yolox, Apache-2.0; torchvision, which timm imports, BSD-3-Clause.

A graph keeps its small constants. Each large weight is an empty tensor, whose mean and standard deviation stand in the
model's metadata under "fill:<initializer>" as in the shared zoo; `networks.py` fills it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch

SEED = 4
LARGE = 64
"""Elements from which a weight is taken out."""
YOLOX_GAIN = "2.5"
"""SiLU after every convolution shrinks the signal more than the usual gains make up for."""


def define_vision_operators() -> Any:
    """Names that torchvision's own library would define: its wheel is built for another torch, and only imported."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def timm_network(name: str, **options: Any) -> Callable[[], Any]:
    """A classifier of timm's with random weights."""

    def make() -> Any:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return make


def convnext() -> Any:
    """ConvNeXt-tiny; its layer scales are 0.5, for those of a new one (1e-6) would hide what the blocks compute."""
    return timm_network("convnext_tiny", ls_init_value=0.5)()


def yolox(name: str) -> Callable[[], Any]:
    """A detector that gives the boxes of all cells, not yet decoded: [1, cells, 4 + 1 + 80]."""

    def make() -> Any:
        from yolox.config import YoloxConfig

        model = YoloxConfig.get_named_config(name).get_model()
        model.head.decode_in_inference = False
        return model

    return make


NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "resnet18": (timm_network("resnet18", zero_init_last=False), (1, 3, 224, 224)),
    "mobilenetv3_large_100": (timm_network("mobilenetv3_large_100"), (1, 3, 224, 224)),
    "convnext_tiny": (convnext, (1, 3, 224, 224)),
    "regnety_004": (timm_network("regnety_004", zero_init_last=False), (1, 3, 224, 224)),
    "regnety_008": (timm_network("regnety_008", zero_init_last=False), (1, 3, 224, 224)),
    "yolox_nano": (yolox("yolox_nano"), (1, 3, 416, 416)),
    "yolox_tiny": (yolox("yolox_tiny"), (1, 3, 416, 416)),
}
"""How each network is made, and the shape of its input."""


def export(make: Callable[[], Any], shape: tuple[int, ...], path: Path) -> None:
    """Write the network with its weights."""
    torch.manual_seed(SEED)
    model = make().eval()
    with torch.no_grad():
        torch.onnx.export(model, (torch.rand(shape),), str(path), input_names=["input"], output_names=["output"],
                          opset_version=18, dynamo=True, external_data=False, verbose=False)  # fmt: skip


def take_out_weights(model: onnx.ModelProto) -> None:
    """Empty the large float weights; their statistics go into the metadata. Traces of the exporter go too."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        del tensor.metadata_props[:]
        if tensor.data_type != onnx.TensorProto.FLOAT or values.size < LARGE:
            continue
        entry = model.metadata_props.add()
        entry.key, entry.value = f"fill:{tensor.name}", f"{values.mean():.6g},{values.std():.6g}"
        for field in ("raw_data", "float_data"):
            tensor.ClearField(field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NETWORKS, []], default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "networks")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    library = define_vision_operators()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or NETWORKS:
            whole, target = Path(folder) / f"{name}.onnx", arguments.output / f"{name}.onnx"
            export(*NETWORKS[name], whole)
            model = onnx.load(whole)
            take_out_weights(model)
            if name.startswith("yolox"):
                entry = model.metadata_props.add()
                entry.key, entry.value = "fill-gain", YOLOX_GAIN
            target.write_bytes(model.SerializeToString())
            print(f"{target}: {len(model.graph.node)} nodes, {target.stat().st_size} bytes")
    del library


if __name__ == "__main__":
    main()
