"""The session classes, where ONNX Runtime's Python layer defines them."""

from whet.session.inference_session import InferenceSession
from whet.session.io_binding import IOBinding
from whet.session.ortvalue import OrtDevice, OrtValue, SparseTensor

__all__ = ["IOBinding", "InferenceSession", "OrtDevice", "OrtValue", "SparseTensor"]
