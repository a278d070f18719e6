"""Which adapters bring which operator forward: operator to (the opset that changed it, adapter), oldest first.

Operators that are not listed changed only in ways that keep the meaning of older nodes: more element types, further
optional inputs, attributes whose default is the old behaviour.
"""

from __future__ import annotations

from whet.formats.onnx import upgrade_attributes as attributes
from whet.formats.onnx import upgrade_legacy as legacy
from whet.formats.onnx import upgrade_structure as structure
from whet.formats.onnx.rewriting import Adapter
from whet.formats.onnx.schemas import NEWEST_OPSET

Steps = tuple[tuple[int, Adapter], ...]

_ANY = NEWEST_OPSET + 1
_CONSUMED: Steps = ((6, legacy.drop_consumed_inputs),)
_ARITHMETIC: Steps = ((6, legacy.drop_consumed_inputs), (7, legacy.broadcast))
_COMPARISON: Steps = ((7, legacy.broadcast),)
_REDUCTION: Steps = ((18, attributes.axes_to_input),)
_SOFTMAX: Steps = ((13, structure.softmax),)
_RECURRENT: Steps = ((7, legacy.drop_output_sequence),)
_UPSAMPLE: Steps = ((9, structure.upsample_scales), (_ANY, structure.resize_10))

ONNX_STEPS: dict[str, Steps] = {
    "Abs": _CONSUMED,
    "Add": _ARITHMETIC,
    "And": _COMPARISON,
    "BatchNormalization": (
        (6, legacy.drop_consumed_inputs),
        (7, legacy.batch_norm_mode),
        (9, attributes.spatial),
        (14, attributes.batch_norm_training),
    ),
    "Cast": ((6, legacy.cast_to_name),),
    "Ceil": _CONSUMED,
    "Clip": ((6, legacy.drop_consumed_inputs), (11, attributes.clip)),
    "Concat": ((4, legacy.concat_axis),),
    "DFT": ((20, attributes.dft),),
    "Div": _ARITHMETIC,
    "Dropout": (
        (6, legacy.drop_consumed_inputs),
        (7, legacy.dropout_mode),
        (10, attributes.dropout_mask),
        (12, attributes.dropout),
    ),
    "Elu": _CONSUMED,
    "Equal": _COMPARISON,
    "Exp": _CONSUMED,
    "Floor": _CONSUMED,
    "GRU": ((3, legacy.gru_direction), *_RECURRENT),
    "Gemm": ((7, legacy.gemm_broadcast),),
    "GlobalLpPool": ((2, legacy.norm_order),),
    "Greater": _COMPARISON,
    "GridSample": ((20, attributes.grid_sample),),
    "GroupNormalization": ((21, structure.group_norm),),
    "HardSigmoid": _CONSUMED,
    "Hardmax": _SOFTMAX,
    "InstanceNormalization": _CONSUMED,
    "LSTM": _RECURRENT,
    "LeakyRelu": _CONSUMED,
    "Less": _COMPARISON,
    "Log": _CONSUMED,
    "LogSoftmax": _SOFTMAX,
    "LpPool": ((2, legacy.norm_order),),
    "Max": _CONSUMED,
    "Mean": _CONSUMED,
    "Min": _CONSUMED,
    "Mul": _ARITHMETIC,
    "Neg": _CONSUMED,
    "Or": _COMPARISON,
    "PRelu": ((6, legacy.drop_consumed_inputs), (7, legacy.prelu_slope)),
    "Pad": ((2, legacy.pad_name), (11, attributes.pad)),
    "Pow": _COMPARISON,
    "RNN": _RECURRENT,
    "Reciprocal": _CONSUMED,
    "ReduceL1": _REDUCTION,
    "ReduceL2": _REDUCTION,
    "ReduceLogSum": _REDUCTION,
    "ReduceLogSumExp": _REDUCTION,
    "ReduceMax": _REDUCTION,
    "ReduceMean": _REDUCTION,
    "ReduceMin": _REDUCTION,
    "ReduceProd": _REDUCTION,
    "ReduceSum": ((13, attributes.axes_to_input),),
    "ReduceSumSquare": _REDUCTION,
    "Relu": _CONSUMED,
    "Reshape": ((5, legacy.reshape_shape),),
    "Resize": ((11, structure.resize_10), (13, structure.resize_11), (_ANY, structure.resize_operands)),
    "RoiAlign": ((16, attributes.roi_align),),
    "Scan": ((9, structure.scan_8),),
    "Scatter": ((_ANY, attributes.scatter),),
    "Selu": ((6, legacy.drop_consumed_inputs), (6, legacy.selu_defaults)),
    "Sigmoid": _CONSUMED,
    "Slice": ((10, attributes.slice_),),
    "Softmax": _SOFTMAX,
    "Split": ((2, legacy.split_sizes_input), (13, attributes.split_sizes), (18, attributes.split_count)),
    "Sqrt": _CONSUMED,
    "Squeeze": ((13, attributes.axes_to_input),),
    "Sub": _ARITHMETIC,
    "Sum": _CONSUMED,
    "Tanh": _CONSUMED,
    "Tile": ((6, legacy.tile_repeats),),
    "TopK": ((10, attributes.top_k),),
    "Unsqueeze": ((13, attributes.unsqueeze),),
    "Upsample": _UPSAMPLE,
    "Xor": _COMPARISON,
}

ML_STEPS: dict[str, Steps] = {
    "LabelEncoder": ((2, legacy.label_encoder),),
}
