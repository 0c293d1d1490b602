"""A grid from presets, a YAML file and flags: later ones win."""

from collections.abc import Mapping
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from agents.evaluation.grid import Grid, parse_attack
from agents.evaluation.plugins import read_plugin
from agents.evaluation.policies import SHIPPED
from fl_core.attacks import Knowledge, attack_names, make_attack
from fl_core.config import federation_settings
from fl_core.registry import check_known
from optigrad_env.scenarios import attack_set

# The names of flags and of the keys of a YAML file, and the fields of ``Grid`` that they fill.
_FIELDS = {
    "rules": "rules",
    "policies": "policies",
    "attacks": "attacks",
    "malicious_fraction": "malicious_fractions",
    "heterogeneity": "heterogeneities",
    "seeds": "seeds",
    "env_id": "env_ids",
    "num_clients": "num_clients",
    "rounds": "rounds",
    "num_byzantine": "num_byzantine",
    "controls": "controls",
    "features": "features",
    "settings": "settings",
    "plugins": "plugins",
}
# A key that goes into the seeds.
_FIRST_SEED = "first_seed"
_LISTS = ("rules", "policies", "attacks", "malicious_fraction", "heterogeneity", "env_id", "num_clients", "plugins")
_ADAPTIVE = (Knowledge.RULE, Knowledge.FINGERPRINT, Knowledge.POLICY)
_PRESETS = files("agents.evaluation") / "presets"

DEFAULTS: dict[str, Any] = {
    "rules": ["fedavg", "median", "trimmed_mean", "krum", "fltrust", "shapley"],
    "attacks": ["held_out"],
    "malicious_fraction": [0.0, 0.3],
    "heterogeneity": [0.5, 0.1],
    "seeds": 5,
    "settings": {},
}


def preset_names() -> list[str]:
    """Presets that come with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _PRESETS.iterdir() if item.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset.

    Raises:
        ValueError: Unknown preset.
    """
    check_known("preset", [name], preset_names())
    return _parse(f"preset {name}", (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, by the names of the flags, with ``-`` or ``_``.

    Raises:
        ValueError: It cannot be read, is not YAML, or has unknown keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} cannot be read: {error}") from error
    return _parse(f"config {path}", text)


def make_grid(*layers: Mapping[str, Any]) -> Grid:
    """A grid from settings by the names of flags; later layers win, ``None`` is left unsaid, ``settings`` are merged.

    Where no layer says what to compare, it is the shipped policy with the usual rules.

    Raises:
        ValueError: A value of the wrong type, or anything that ``Grid`` refuses.
    """
    merged: dict[str, Any] = dict(DEFAULTS)
    if all(layer.get(name) is None for layer in layers for name in ("policies", "rules")):
        merged["policies"] = [SHIPPED]
    for layer in layers:
        given = {name: value for name, value in layer.items() if value is not None}
        if isinstance(given.get("seeds"), list | tuple):
            merged.pop(_FIRST_SEED, None)  # an earlier layer's: a list says where it begins
        if not isinstance(given.get("settings", {}), Mapping):
            raise ValueError(f"settings must be a mapping of names to values, got {given['settings']!r}")
        settings = {**merged.get("settings", {}), **given.get("settings", {})}
        merged |= given | {"settings": settings}
    for name in _LISTS:
        if name in merged:
            merged[name] = _as_tuple(name, merged[name])
    merged["plugins"] = tuple(read_plugin(path) for path in merged.get("plugins", ()))
    for plugin in merged["plugins"]:
        plugin.load()  # before names are looked up: they may be the plug-in's
    merged = {name: _typed(name, value) for name, value in merged.items()}
    merged["attacks"] = tuple(dict.fromkeys(attack for word in merged["attacks"] for attack in _attacks(str(word))))
    for name in ("rules", "policies", "heterogeneity", "env_id"):  # a file may hold numbers where names belong
        if name in merged:
            merged[name] = tuple(map(str, merged[name]))
    merged["seeds"] = _seeds(merged["seeds"], merged.pop(_FIRST_SEED, None))
    check_known("setting of the federations", merged["settings"], federation_settings())
    return Grid(**{_FIELDS[name]: value for name, value in merged.items()})


def _parse(what: str, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be a mapping of settings to values, got {type(content).__name__}")
    renamed = {str(name).replace("-", "_"): value for name, value in content.items()}
    if "alpha" in renamed:
        renamed.setdefault("heterogeneity", renamed.pop("alpha"))
    if "plugin" in renamed:
        renamed.setdefault("plugins", renamed.pop("plugin"))
    check_known(f"setting in {what}", renamed, [*_FIELDS, _FIRST_SEED])
    plugins = renamed.pop("plugins", None)  # empty, it is left unsaid, as any other
    return renamed if plugins is None else {**renamed, "plugins": _as_tuple("plugins", plugins)}


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, Mapping):
        raise ValueError(f"{name} must be one value or a list, got {value!r}")
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _typed(name: str, value: Any) -> Any:
    """A setting's value, where it must be numbers, a number or a switch."""
    if name in ("malicious_fraction", "num_clients"):
        return tuple(_number(name, each, int if name == "num_clients" else float) for each in value)
    if name in ("rounds", "num_byzantine"):
        return _number(name, value, int)
    if name in ("controls", "features") and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def _number(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or kind(value) != value:
        raise ValueError(f"{name} must be {'whole ' if kind is int else ''}numbers, got {value!r}")
    return kind(value)


def _attacks(word: str) -> list[str]:
    """A set's attacks, or the attack itself.

    ``train_colluding`` is the train attacks' other form; ``adaptive`` are those that know the rule or more.
    """
    if word == "adaptive":
        return [name for name in attack_names() if make_attack(name).knows in _ADAPTIVE]
    if word == "train_colluding":
        return [f"{attack}:colluding=true" for attack in attack_set("train")]
    parse_attack(word)
    return attack_set(word)


def _seeds(given: Any, first: Any) -> tuple[int, ...]:
    """``10`` is the ten from the first on, 0 by default; a list is what it says."""
    if isinstance(given, list | tuple):
        if first is not None:
            raise ValueError(
                f"first_seed={first!r} beside the list of seeds {list(given)}: leave first_seed out, or give seeds as "
                "a number"
            )
        return tuple(_number("seeds", seed, int) for seed in given)
    count, start = _number("seeds", given, int), _number(_FIRST_SEED, 0 if first is None else first, int)
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {count}")
    return tuple(range(start, start + count))
