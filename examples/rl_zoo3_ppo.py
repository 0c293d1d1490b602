"""Train with the RL zoo, which knows nothing of this project beyond the name of the package to import.

    pip install -c constraints.txt 'optigradtrust[zoo]'
    python examples/rl_zoo3_ppo.py --n-timesteps 20000 --log-folder runs/zoo

is ``python -m rl_zoo3.train --algo ppo --env OptiGrad/Digits-v0 --gym-packages optigrad_env --conf-file
examples/rl_zoo3_ppo.yml``. Arguments are the zoo's own; another algorithm needs a file of its own hyperparameters.
"""

import runpy
import sys
from pathlib import Path

import torch

_OURS = ["--algo", "ppo", "--env", "OptiGrad/Digits-v0", "--gym-packages", "optigrad_env", "--device", "cpu"]


def main(arguments: list[str]) -> None:
    """Runs ``rl_zoo3.train``; of an option that is given twice the last one counts."""
    torch.set_num_threads(1)
    hyperparameters = str(Path(__file__).with_suffix(".yml"))
    sys.argv = ["rl_zoo3.train", *_OURS, "--conf-file", hyperparameters, *arguments]
    runpy.run_module("rl_zoo3.train", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
