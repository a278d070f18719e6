"""What models and the server say of themselves, as plain documents with the protocol's names.

HTTP writes them as JSON; gRPC fills its messages with them (`json_format.ParseDict` takes them as they are).
"""

from __future__ import annotations

from typing import Any

from whet.server.model import ServedModel
from whet.server.model_config import TensorConfig
from whet.server.stats import Duration, ModelStats


def tensor_document(tensor: TensorConfig, batched: bool) -> dict[str, Any]:
    """An input or output as metadata shows it: the batch's extent, where there is one, is -1."""
    dims = [-1, *tensor.dims] if batched else list(tensor.dims)
    return {"name": tensor.name, "datatype": tensor.datatype.name, "shape": dims}


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """The metadata of a model; `versions` are those that answer."""
    config = model.config
    batched = config.max_batch_rows > 0
    return {
        "name": config.name,
        "versions": versions,
        "platform": config.platform,
        "inputs": [tensor_document(t, batched) for t in config.inputs],
        "outputs": [tensor_document(t, batched) for t in config.outputs],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def model_statistics(name: str, version: str, stats: ModelStats) -> dict[str, Any]:
    """The statistics extension's document of one model version."""
    return {
        "name": name,
        "version": version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": {
            "success": _duration(stats.success),
            "fail": _duration(stats.fail),
            "queue": _duration(stats.queue),
            "compute_input": _duration(stats.compute_input),
            "compute_infer": _duration(stats.compute_infer),
            "compute_output": _duration(stats.compute_output),
            "cache_hit": _duration(stats.cache_hit),
            "cache_miss": _duration(stats.cache_miss),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(batch.input),
                "compute_infer": _duration(batch.infer),
                "compute_output": _duration(batch.output),
            }
            for rows, batch in sorted(stats.batches.items())
        ],
        "memory_usage": [],
        "response_stats": {},
    }
