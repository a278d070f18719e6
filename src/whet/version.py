"""The version of Whet, read by the build and shown by `whet --version`."""

__version__ = "0.1.0"
