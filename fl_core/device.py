"""Which device a federation's rounds run on."""

import torch

DEVICES = ("cpu", "cuda")


def check_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda`` (the first GPU), or ``cuda:1`` and so on.

    Raises:
        ValueError: A device that this package does not know, or that is not there; the message says what to do.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in DEVICES:
        raise ValueError(f"device must be 'cpu', 'cuda' or a numbered GPU such as 'cuda:0', got {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = (
            "this PyTorch is built without CUDA; install one with it (pytorch.org/get-started)"
            if torch.version.cuda is None
            else "PyTorch finds no NVIDIA GPU; check the driver with nvidia-smi"
        )
        raise ValueError(f"device={name!r}: {why}, or use device='cpu'")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"device={name!r}: there are {count} GPUs, numbered from 0; use cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", device.index or 0)
