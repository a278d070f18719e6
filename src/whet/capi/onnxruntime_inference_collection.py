"""The session classes, where ONNX Runtime's Python layer defines them."""

from whet.session.device import OrtDevice, OrtDeviceVendorId
from whet.session.inference_session import InferenceSession
from whet.session.io_binding import IOBinding
from whet.session.ortvalue import OrtValue, SparseTensor, copy_tensors

__all__ = [
    "IOBinding",
    "InferenceSession",
    "OrtDevice",
    "OrtDeviceVendorId",
    "OrtValue",
    "SparseTensor",
    "copy_tensors",
]
