"""A policy's JSON as a page for people."""

from collections.abc import Mapping
from typing import Any

from fl_core.aggregation import TrustWeighting

_PAGE = """# Trust policy{trained_on}

Turns the fingerprints of a federated round into one trust value a client: (N, {features}) to (N,), for any N. Made for
[OptiGradTrust]({source}); runs on plain PyTorch.

```python
from agents import TrustAggregator, load_policy

rule = TrustAggregator(load_policy("{directory}"))  # an aggregation rule
```

## What it reads

In this order: {names}. {attention}

Its trust becomes weights with `update_clip={clip!r}` and `root_anchor={anchor}`; {trained}.
{sybils}{safeguard}

## How it was trained

{facts}

## What to expect

{metrics}

Measured in training, without the safeguard, on validation data under the attacks above: `mean_reward` in nats a round
over the honest clients' mean. What it does as deployed and under other attacks is measured by `evaluate.py`, on test
data. It judges updates by what they do for clean samples, and may let a backdoor pass: see `attack_success` there.
"""
_TRAINED = "it was trained with `update_clip={update_clip!r}` and `root_anchor={root_anchor}`"
_NO_OTHER = ("it has seen no other weighting", "it has seen no other weighting since the policy that it began with")
_SAFEGUARD = """Deployed, the safeguard stands behind it, which it has not seen in training: nine candidate updates (its
own aggregate; the same without clients whose Shapley value is not positive; mixtures of each with the server's own
update; that update alone) are tried on the utility half of the root data, and the one of least loss is taken if it
beats the first by more than {margin:g} standard errors."""
_SYBILS = """Clients that send the same are discounted{remembered}, with {options}; {seen}.
"""
_REMEMBERED = ", and those that are more alike than most in every round weigh less and less"
_STATEFUL = """The rule remembers clients: give each view `clients=`, the same number for the same client in every
round, use one rule from the first round to the last, and keep it where the server is kept.
"""
_NO_SYBILS = """In training clients that send the same were discounted; deployed they are not.
"""
_SOURCE = "https://arxiv.org/abs/2507.23638"
_OF_SYBILS = ("sybil_exponent", "sybil_power")
# What has a heading of its own.
_ELSEWHERE = ("metrics", "trained_with")


def model_card(card: Mapping[str, Any]) -> str:
    """Markdown from the contents of ``policy.json``."""
    provenance, sizes = card["provenance"], card["architecture"]
    weighting, trained = TrustWeighting(**card["weighting"]), provenance.get("trained_with")
    return _PAGE.format(
        trained_on=f" trained on {provenance['env_id']}" if "env_id" in provenance else "",
        features=len(card["features"]),
        names=", ".join(f"`{name}`" for name in card["features"]),
        attention=f"Self-attention over clients: {sizes['depth']} blocks of width {sizes['width']}, "
        f"{sizes['heads']} heads.",
        source=_SOURCE,
        directory="path/to/this/directory",
        clip=weighting.update_clip,
        anchor=weighting.root_anchor,
        trained=_trained(weighting, trained) or _NO_OTHER[bool(provenance.get("started_from"))],
        sybils=_sybils(weighting, trained),
        safeguard=_SAFEGUARD.format(margin=weighting.safeguard_margin)
        if weighting.safeguard
        else "It is deployed without the safeguard.",
        facts=_table({name: value for name, value in provenance.items() if name not in _ELSEWHERE}),
        metrics=_table(provenance.get("metrics") or {}),
    )


def _trained(weighting: TrustWeighting, trained: Mapping[str, Any] | None) -> str:
    """How it was clipped and anchored in training, if that was otherwise."""
    other = trained and any(getattr(weighting, name) != trained[name] for name in ("update_clip", "root_anchor"))
    return _TRAINED.format(**trained) if trained and other else ""


def _sybils(weighting: TrustWeighting, trained: Mapping[str, Any] | None) -> str:
    """What becomes of sybils, now and in training, if anything ever did."""
    now = {name: getattr(weighting, name) for name in _OF_SYBILS}
    # What is not said to be otherwise is as in training; a card from before sybils were counted does not name them.
    before = now if trained is None else {name: trained.get(name, 0.0) for name in _OF_SYBILS}
    if not weighting.sybil_exponent:
        return _NO_SYBILS if before["sybil_exponent"] else ""
    if before == now:
        seen = "as in training"
    elif before["sybil_exponent"]:
        seen = f"it was trained with {_options(before)}"
    else:
        seen = "it has not seen this in training"
    remembered = _REMEMBERED if weighting.sybil_power else ""
    page = _SYBILS.format(remembered=remembered, options=_options(now), seen=seen)
    return page + _STATEFUL if weighting.sybil_power else page


def _options(of_sybils: Mapping[str, float]) -> str:
    """What is switched on, as it is written in Python."""
    return " and ".join(f"`{name}={value:g}`" for name, value in of_sybils.items() if value)


def _table(facts: Mapping[str, Any]) -> str:
    if not facts:
        return "Not recorded."
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_text(value)} |" for name, value in facts.items())])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
