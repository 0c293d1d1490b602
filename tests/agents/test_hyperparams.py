"""Settings of the algorithms, as files in the zoo's form: ours, the user's, and those that do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.algorithms import HYPERPARAMS, _rollout, algorithm_names, make_algorithm, read_hyperparams
from agents.off_policy import OffPolicyAttentionPolicy
from agents.policies import AttentionPolicy
from optigrad_env import OptiGradEnv

OFF_POLICY = ("sac", "td3", "tqc")


@pytest.mark.parametrize("name", algorithm_names())
def test_after_a_warm_start_an_algorithm_takes_smaller_steps_and_discounts_all_the_same(name: str) -> None:
    scratch, warm = (read_hyperparams(name, "any", warm_started=started).constructor for started in (False, True))
    assert scratch["gamma"] == warm["gamma"] == 0
    size = "target_kl" if name == "trpo" else "learning_rate"
    assert warm[size] < scratch[size]


@pytest.mark.parametrize("name", algorithm_names())
def test_the_zoo_finds_an_entry_for_its_environment_with_a_policy_it_can_import(name: str) -> None:
    entry = yaml.safe_load((HYPERPARAMS / f"{name}.yml").read_text())["OptiGrad/Digits-v0"]
    policy = OffPolicyAttentionPolicy if name in OFF_POLICY else AttentionPolicy
    assert entry["policy"] == f"{policy.__module__}.{policy.__name__}"
    assert entry["n_timesteps"] > 0


@pytest.mark.parametrize("name", ["td3", "tqc"])
def test_what_the_policy_must_be_told_for_an_algorithm_need_not_be_in_its_settings(
    name: str, fast: Callable[[str], Path], federation: VecEnv
) -> None:
    file = fast(name)
    entry = yaml.safe_load(file.read_text())["default"] | {"learning_starts": 8}
    architecture = {"architecture": entry["policy_kwargs"]["architecture"]}
    file.write_text(yaml.safe_dump({"default": {**entry, "policy_kwargs": architecture}}))
    make_algorithm(name, federation, seed=0, hyperparams=file).learn(16)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("td3", "{distribution: beta}", "own.yml does not fit td3: .*its actor is deterministic"),
        ("sac", "{distribution: gaussian}", "own.yml does not fit sac: .*leave the box"),
        ("sac", "{distribution: null}", "own.yml does not fit sac: .*needs squashed or beta"),
        ("sac", "{n_quantiles: 25}", "own.yml does not fit sac: .*n_quantiles is for tqc"),
        ("tqc", "{n_quantiles: null}", "own.yml does not fit tqc: .*n_quantiles must be"),
        ("ppo", "{distribution: null}", "own.yml does not fit ppo: unknown distribution None"),
    ],
)
def test_a_policy_in_a_file_that_does_not_go_with_an_algorithm_is_refused_with_the_reason(
    name: str, given: str, message: str, tmp_path: Path, federation: VecEnv
) -> None:
    file = tmp_path / "own.yml"
    file.write_text(f"default: {{policy_kwargs: {given}}}")
    with pytest.raises(ValueError, match=message):
        make_algorithm(name, federation, seed=0, hyperparams=file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: {learning_rat: 0.1}", "does not fit ppo.*learning_rat"),
        ("other: {learning_rate: 0.1}", "no entry 'any' or 'default'"),
        ("- 1", "no entry"),
        ("{", "cannot read hyperparameters"),
        ("default: {noise_type: pink, noise_std: 1.0}", "noise_type.*'pink'"),
    ],
)
def test_a_file_of_settings_that_does_not_fit_is_refused_by_name(
    text: str, message: str, tmp_path: Path, federation: VecEnv
) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        make_algorithm("ppo", federation, seed=0, env_id="any", hyperparams=file)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("ppo", "n_steps: a", "n_steps must be a whole number of at least 1, got 'a'"),
        ("ppo", "n_steps: 0", "n_steps must be a whole number of at least 1, got 0"),
        ("ppo", "n_steps: true", "n_steps must be a whole number of at least 1, got True"),
        ("ppo", "batch_size: 0", "batch_size must be .*, got 0"),
        ("sac", "batch_size: -2", "batch_size must be .*, got -2"),
        ("ppo", "n_epochs: 0", "n_epochs must be .*, got 0"),
        ("ppo", "n_epochs: a", "n_epochs must be .*, got 'a'"),
        ("ppo", "gamma: 2", r"gamma must be a number in \[0, 1\], got 2"),
        ("a2c", "gamma: 1e-1", r"gamma must be a number in \[0, 1\], got '1e-1' \(YAML takes 1e-1 for text"),
        ("ppo", "gamma: .nan", "gamma must be .*, got nan"),
        ("ppo", "ent_coef: a", "ent_coef must be a finite number, got 'a'"),
        ("ppo", "ent_coef: auto", "ent_coef must be a finite number, got 'auto'"),
        ("sac", "ent_coef: a", "ent_coef must be a finite number or auto, got 'a'"),
        ("sac", "ent_coef: auto_a", "ent_coef must be a finite number or auto, got 'auto_a'"),
        ("sac", "ent_coef: auto_0", "does not fit sac: .*greater than 0"),
        ("trpo", "cg_max_steps: a", "cg_max_steps must be .*, got 'a'"),
        ("sac", "tau: a", r"tau must be a number in \[0, 1\], got 'a'"),
        ("td3", "train_freq: 0", "train_freq must be .*, got 0"),
        ("td3", "buffer_size: 0", "buffer_size must be .*, got 0"),
        ("ppo", "n_envs: -1", "n_envs must be .*, got -1"),
        ("ppo", "n_envs: a", "n_envs must be .*, got 'a'"),
        ("td3", "noise_std: a", "noise_std must be a finite number of at least 0, got 'a'"),
        ("ppo", "policy_kwargs: {log_std_init: a}", "log_std_init must be a finite number, got 'a'"),
        ("sac", "policy_kwargs: {n_critics: 0}", "n_critics must be .*, got 0"),
        ("ppo", "learning_rate: -1.0", "does not fit ppo: .*-1.0"),
        ("tqc", "top_quantiles_to_drop_per_net: 25", "top_quantiles_to_drop_per_net must be less than n_quantiles=25"),
        ("tqc", "policy_kwargs: {n_quantiles: 2}", "must be less than n_quantiles=2, got 2: no target would be left"),
        ("ppo", "policy_kwargs: {architecture: {width: '64'}}", "must be positive whole numbers"),
        ("ppo", "learning_rate: lin_3e-4", "does not fit ppo: .*lin_3e-4"),
    ],
)
def test_a_number_that_cannot_be_is_refused_naming_file_and_setting(
    name: str, setting: str, message: str, tmp_path: Path, federation: VecEnv
) -> None:
    file = tmp_path / "own.yml"
    file.write_text(f"default:\n  {setting}")
    with pytest.raises(ValueError, match=rf"(?s)own\.yml.*{message}"):
        make_algorithm(name, federation, seed=0, hyperparams=file)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("sac", "ent_coef: auto"),
        ("sac", "ent_coef: auto_0.1"),
        ("sac", "ent_coef: 1e-2"),
        ("tqc", "target_entropy: -3.0"),
        ("td3", "gradient_steps: -1"),
        ("ppo", "target_kl: null"),
        ("ppo", "n_timesteps: 1e6"),
        ("ppo", "gamma: 1"),
    ],
)
def test_what_files_of_the_zoo_hold_is_taken(name: str, setting: str, tmp_path: Path, federation: VecEnv) -> None:
    file = tmp_path / "own.yml"
    file.write_text(f"default:\n  {setting}")
    make_algorithm(name, federation, seed=0, timesteps=64, hyperparams=file)


def test_a_file_without_a_minibatch_has_one_that_divides_the_rollout(federation: VecEnv, tmp_path: Path) -> None:
    file = tmp_path / "ppo.yml"
    file.write_text(yaml.safe_dump({"default": {"n_timesteps": 1000, "n_steps": 33, "n_envs": federation.num_envs}}))
    model = make_algorithm("ppo", federation, seed=0, hyperparams=file)
    assert model.n_steps * federation.num_envs % model.batch_size == 0


@pytest.mark.parametrize(
    ("envs", "steps", "timesteps"), [(1, 512, 20_000), (2, 256, 20_000), (4, 128, 512), (1, 64, 64)]
)
def test_a_rollout_is_as_long_over_all_environments_however_many_there_are(
    envs: int, steps: int, timesteps: int
) -> None:
    vec = DummyVecEnv([lambda: OptiGradEnv(num_clients=3, rounds=2)] * envs)
    model = make_algorithm("ppo", vec, seed=0, timesteps=timesteps)
    assert isinstance(model, PPO)
    assert model.n_steps == steps
    assert model.n_steps * envs % model.batch_size == 0


@pytest.mark.parametrize("envs", [100, 144, 200, 256])
def test_with_more_environments_than_a_minibatch_has_rounds_there_is_still_a_rollout(envs: int) -> None:
    settings = read_hyperparams("ppo", "default", warm_started=False)
    rollout = _rollout(settings.constructor, settings.n_envs, envs, 20_000)
    assert rollout["n_steps"] >= 1
    assert rollout["n_steps"] * envs % rollout["batch_size"] == 0


@pytest.mark.parametrize("name", algorithm_names())
@pytest.mark.parametrize("steps", [{}, {"n_steps": 2}])
def test_which_policy_an_algorithm_gets_does_not_depend_on_what_its_settings_leave_unsaid(
    name: str, steps: dict[str, int], fast: Callable[[str], Path], federation: VecEnv
) -> None:
    file = fast(name)
    entry = yaml.safe_load(file.read_text())["default"]
    entry = {key: value for key, value in entry.items() if key != "n_steps"} | steps
    file.write_text(yaml.safe_dump({"default": entry}))
    model = make_algorithm(name, federation, seed=0, timesteps=48, hyperparams=file)
    assert type(model.policy) is (OffPolicyAttentionPolicy if name in OFF_POLICY else AttentionPolicy)
    if not steps and name not in OFF_POLICY:
        assert model.n_steps == (5 if name == "a2c" else 48)  # the class's own, and no longer than the run
