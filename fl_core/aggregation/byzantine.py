"""The number of Byzantine clients that a rule is told to expect."""

from collections.abc import Callable

ASSUMED_SHARE = 0.3


def assumed_byzantine(
    num_byzantine: int | None, num_clients: int, rejected: int, most: Callable[[int], int], rule: str, bound: str
) -> int:
    """Checks the user's number, or assumes 30 % of the clients (as far as the rule's bound lets it).

    A server does not know the true number; 30 % is the share in the protocol of arXiv 2507.23638.

    Args:
        num_byzantine: What the user said, or ``None``.
        num_clients: n, the rejected ones included.
        rejected: How many of them are out already; they count as found, so fewer are left to expect.
        most: Largest f that the rule can take for n.
        rule: Name for the message.
        bound: The bound for the message, such as "n >= 2f + 3".

    Raises:
        ValueError: The number is negative or above the bound.
    """
    if num_byzantine is None:
        left = num_clients - rejected
        return max(min(int(ASSUMED_SHARE * left + 1e-9), most(left)), 0)
    if not 0 <= num_byzantine <= most(num_clients):
        raise ValueError(f"{rule} needs {bound}; got n={num_clients}, f=num_byzantine={num_byzantine}")
    return max(num_byzantine - rejected, 0)
