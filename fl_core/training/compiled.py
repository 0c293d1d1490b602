"""The compiled engine: the reference with the network's passes compiled, for networks that no faster engine knows."""

import torch
from torch import Tensor, nn

from fl_core.models.parameters import ParameterLayout
from fl_core.training.sequential import SequentialEngine


class CompiledEngine(SequentialEngine):
    """``SequentialEngine`` whose training passes go through ``torch.compile``. An opt-in: ``auto`` never picks it.

    The first batch of each shape waits for the compilation, tens of seconds for a ResNet-18, so this is for long runs.
    Evaluation is the reference's.

    Raises:
        ValueError: PyTorch finds no C++ compiler.
    """

    name = "compiled"

    def __init__(self, network: nn.Module, layout: ParameterLayout) -> None:
        super().__init__(network, layout)
        _require_compiler()
        # One compilation a shape: batches of a federation are all of one.
        self._compiled = torch.compile(self._network, dynamic=False)

    def _outputs(self, x: Tensor) -> Tensor:
        outputs: Tensor = self._compiled(x)
        return outputs


def _require_compiler() -> None:
    """Raises a ValueError that says what to do, if ``torch.compile`` could not work: found out now, not in a round."""
    # Not imported at the top: it takes seconds, and only this engine needs it.
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "the compiled engine needs a C++ compiler for torch.compile, and there is none: install one (such as g++), "
            "name it in $CXX, or use engine='sequential'"
        ) from error
