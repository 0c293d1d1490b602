"""The number of Byzantine clients that a rule is told to expect."""

from collections.abc import Callable
from dataclasses import dataclass

from fl_core.aggregation.view import ServerView

ASSUMED_SHARE = 0.3


@dataclass(frozen=True)
class Bound:
    """How many Byzantine clients a rule can take.

    Attributes:
        text: For the message, such as "n >= 2f + 3".
        most: Largest f for n clients.
    """

    text: str
    most: Callable[[int], int]


# What holds for most rules: more than half of the clients are honest.
MAJORITY = Bound("n >= 2f + 1", lambda n: (n - 1) // 2)


def assumed_byzantine(num_byzantine: int | None, view: ServerView, rule: str, bound: Bound = MAJORITY) -> int:
    """Checks the user's number, or assumes 30 % of the clients, rounded down, as far as the rule's bound lets it.

    A server does not know the true number; 30 % is the share in the protocol of arXiv 2507.23638. A number that was
    given is of all clients: those that are rejected count as found, so fewer are left to expect, at last none. The
    share is of the clients that are left: what is assumed of them does not become less by what others have sent.

    Args:
        num_byzantine: What the user said, or ``None``.
        view: The round.
        rule: Name for the message.
        bound: What the rule can take, of all clients of the view.

    Raises:
        ValueError: The number is negative or above the bound.
    """
    n, left = len(view.updates), len(view.accepted)
    if num_byzantine is None:
        return max(min(int(ASSUMED_SHARE * left + 1e-9), bound.most(left)), 0)
    if not 0 <= num_byzantine <= bound.most(n):
        raise ValueError(f"{rule} needs {bound.text}; got n={n}, f=num_byzantine={num_byzantine}")
    return max(num_byzantine - (n - left), 0)
