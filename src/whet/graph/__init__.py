"""The intermediate representation: values, nodes, graphs, symbolic dimensions, patches, verification and text."""

from whet.graph.copy import copy_graph, copy_model, extract
from whet.graph.core import Attribute, Graph, Model, Node, Provenance, Value
from whet.graph.dims import Dim, Expr, Shape
from whet.graph.patch import Patch, apply
from whet.graph.tensor import TensorData
from whet.graph.types import MapType, OptionalType, SequenceType, TensorType, Type

__all__ = [
    "Attribute",
    "Dim",
    "Expr",
    "Graph",
    "MapType",
    "Model",
    "Node",
    "OptionalType",
    "Patch",
    "Provenance",
    "SequenceType",
    "Shape",
    "TensorData",
    "TensorType",
    "Type",
    "Value",
    "apply",
    "copy_graph",
    "copy_model",
    "extract",
]
