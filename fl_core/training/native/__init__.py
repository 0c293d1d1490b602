"""The native engine: training and evaluation of the ``small_cnn`` family in C++; see docs/native_engine.md."""

from fl_core.training.native.engine import NativeEngine
from fl_core.training.native.library import checksum, instruction_set, is_built, supported_instruction_sets, why_not

__all__ = ["NativeEngine", "checksum", "instruction_set", "is_built", "supported_instruction_sets", "why_not"]
