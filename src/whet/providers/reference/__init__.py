"""The provider that runs every operator with numpy: the measure of right answers."""

from whet.providers.reference.provider import ReferenceExecutionProvider

__all__ = ["ReferenceExecutionProvider"]
