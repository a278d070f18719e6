"""CPUExecutionProvider: subgraphs as machine code."""

from whet.providers.cpu.provider import ACCEPTED_OPTIONS, CPUExecutionProvider

__all__ = ["ACCEPTED_OPTIONS", "CPUExecutionProvider"]
