"""Reading and writing ONNX models: the only code (with two wrappers in `ops`) that handles onnx's protobufs."""

from whet.formats.onnx.load import from_text, load_model
from whet.formats.onnx.opsets import READER_OPSET
from whet.formats.onnx.save import save_model
from whet.formats.onnx.source import release_pages
from whet.formats.onnx.tensor_file import read_tensor
from whet.formats.onnx.write import node_to_proto, to_proto

__all__ = [
    "READER_OPSET",
    "from_text",
    "load_model",
    "node_to_proto",
    "read_tensor",
    "release_pages",
    "save_model",
    "to_proto",
]
