"""Engines: compiled models on disk, with their code and packed weights; they load without compiling."""

from whet.engine.container import MAGIC, is_engine
from whet.engine.load import LoadedEngine, load_engine
from whet.engine.save import EngineInfo, save_engine

__all__ = ["MAGIC", "EngineInfo", "LoadedEngine", "is_engine", "load_engine", "save_engine"]
