"""Everything that takes part: rules, policies, references that know the truth, and negative controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from agents.deployed import TrustAggregator
from agents.evaluation.controls import FEATURES_SHUFFLED, ROOT_LABELS_SHUFFLED, ShuffledFeatures
from agents.evaluation.policies import PolicyFacts, locate_policy, parse_policy, policy_facts, policy_label
from fl_core.aggregation import Rule, TrustRule, TrustWeighting, make_rule, takes_num_byzantine
from fl_core.aggregation.learned import FITTED, fitted
from fl_core.config import FederationConfig

# Always run: the two upper references and the floor. The oracles are told who is honest.
ORACLES = ("oracle", "anchored_oracle")
FLOOR = "root_only"
REFERENCES = (*ORACLES, FLOOR)


@dataclass(frozen=True)
class Contestant:
    """One row of a cell.

    Attributes:
        label: Name of its rows.
        rule: Name of the aggregation rule, where it is one.
        policy: The policy, where it is one.
        num_byzantine: What the rule is told; ``None`` lets it assume.
        control: Which negative control this is, if it is one.
    """

    label: str
    rule: str | None = None
    policy: PolicyFacts | None = None
    num_byzantine: int | None = None
    control: str | None = None

    @property
    def seen(self) -> tuple[str, ...] | None:
        """Attacks that it was trained or fitted on; ``None`` if a policy's card does not say."""
        if self.policy is not None:
            return self.policy.seen
        assert self.rule is not None
        name = self.rule.rpartition("+")[2]
        return tuple(attack for attack in fitted(name)["attacks"] if attack != "none") if name in FITTED else ()

    def make(self, config: FederationConfig, seed: int = 0) -> Rule:
        """A fresh rule for one federation.

        Raises:
            ValueError: Unknown rule, a parameter that it does not take, or a damaged policy.
        """
        if self.policy is not None:
            made: Rule = TrustAggregator(self.policy.network, self.policy.weighting)
        else:
            assert self.rule is not None
            told = self.num_byzantine is not None and takes_num_byzantine(self.rule)
            made = make_rule(self.rule, **({"num_byzantine": self.num_byzantine} if told else {}))
        if self.control == FEATURES_SHUFFLED:
            assert isinstance(made, TrustRule)
            return ShuffledFeatures(made, seed)
        return made


def contestants(
    rules: Sequence[str],
    policies: Sequence[str],
    config: FederationConfig,
    num_byzantine: int | None,
    controls: bool,
    settings: Mapping[str, Any],
) -> tuple[Contestant, ...]:
    """Who takes part on one environment: policies, rules, references, and the controls after the one they belong to.

    A policy's trust is weighed as its card says, except for what the grid's settings or its own options say otherwise.

    Raises:
        ValueError: A name is unknown or taken twice, or a policy cannot be loaded.
    """
    _check_labels(rules, policies)
    weighting = {each.name: settings[each.name] for each in fields(TrustWeighting) if each.name in settings}
    learned = []
    for spec in policies:
        policy, own = parse_policy(spec)
        facts = policy_facts(locate_policy(policy, config.dataset), **{**weighting, **own})
        learned.append(Contestant(policy_label(spec), policy=facts))
    given = [Contestant(rule, rule, num_byzantine=num_byzantine) for rule in dict.fromkeys([*rules, *REFERENCES])]
    everybody = []
    for contestant in [*learned, *given]:
        made = contestant.make(config)
        everybody.append(contestant)
        if controls and contestant.label not in REFERENCES:
            if isinstance(made, TrustRule) and made.reads_fingerprint:
                everybody.append(_control(contestant, FEATURES_SHUFFLED))
            if made.needs_root:
                everybody.append(_control(contestant, ROOT_LABELS_SHUFFLED))
    return tuple(everybody)


def _control(contestant: Contestant, control: str) -> Contestant:
    return replace(contestant, label=f"{contestant.label} ({control})", control=control)


def _check_labels(rules: Sequence[str], policies: Sequence[str]) -> None:
    names = [policy_label(policy) for policy in policies]
    if len(set(names)) < len(names):
        raise ValueError(f"two policies have the same directory name, which names their row: {tuple(policies)}")
    taken = [name for name in names if name in (*rules, *REFERENCES)]
    if taken:
        raise ValueError(f"policy directory {taken[0]!r} has the name of a rule, and would take its row; rename it")
