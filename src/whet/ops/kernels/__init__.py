"""Whet's own evaluation kernels: operators that `onnx.reference` computes slowly, wrongly or not at all."""
