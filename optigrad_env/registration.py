"""The environment ids and what each has for defaults. Everything can be overridden in ``gym.make``."""

from typing import Any

import gymnasium

_ENTRY_POINTS = ("optigrad_env.env:OptiGradEnv", "optigrad_env.vector:OptiGradVectorEnv")
_MASKED = ("optigrad_env.masked:MaskedOptiGradEnv", "optigrad_env.masked:MaskedOptiGradVectorEnv")

# Lists, not tuples: an id's arguments must survive JSON. Step sizes were chosen on validation data, without attack,
# where the usual 0.1 would not do.
_LINEAR: dict[str, Any] = {"network": "mlp", "network_options": {"hidden": []}}
_CNN_28: dict[str, Any] = {
    "network_options": {"channels": [16, 32], "hidden": 64},
    "local_steps": 5,
    "batch_size": 32,
    "learning_rate": 0.1,
}
_CNN_32_OF_FOLDER: dict[str, Any] = {
    "network_options": {"channels": [16, 32]},
    "dataset_options": {"image_size": 32},
    "local_steps": 10,
    "batch_size": 32,
    "learning_rate": 0.02,
}

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "OptiGrad/Digits-v0": {"dataset": "digits"},
    "OptiGrad/Softmax-v0": {"dataset": "gaussian_clusters", **_LINEAR, "learning_rate": 0.2},
    "OptiGrad/Quadratic-v0": {"dataset": "gaussian_clusters", **_LINEAR, "loss": "squared", "learning_rate": 0.04},
    "OptiGrad/MNIST-v0": {"dataset": "mnist", **_CNN_28},
    "OptiGrad/FashionMNIST-v0": {"dataset": "fashion_mnist", **_CNN_28},
    "OptiGrad/CIFAR10-v0": {"dataset": "cifar10", **_CNN_28},
    "OptiGrad/AlzheimerMRI-v0": {"dataset": "alzheimer_mri", **_CNN_32_OF_FOLDER},
    "OptiGrad/ChestXray-v0": {"dataset": "chest_xray", **_CNN_32_OF_FOLDER},
    "OptiGrad/ImageFolder-v0": {"dataset": "image_folder", **_CNN_32_OF_FOLDER},
}


def register_environments() -> None:
    """Registers every id with Gymnasium, and beside each the one with clients that come and go."""
    for env_id, kwargs in ENVIRONMENTS.items():
        for name, (entry_point, vector_entry_point) in ((env_id, _ENTRY_POINTS), (masked_id(env_id), _MASKED)):
            gymnasium.register(
                name,
                entry_point=entry_point,
                vector_entry_point=vector_entry_point,
                kwargs=kwargs,
                # Gymnasium's passive checker counts a reset that raised as done, and then fails at a later step. The
                # tests run both checkers on every id.
                disable_env_checker=True,
            )


def masked_id(env_id: str) -> str:
    """The id beside ``env_id`` whose clients come and go: ``OptiGrad/Digits-v0`` to ``OptiGrad/DigitsMasked-v0``."""
    name, version = env_id.rsplit("-", 1)
    return f"{name}Masked-{version}"
