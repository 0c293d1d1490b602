"""Names for things that users choose: one registry per kind, one error that lists what there is."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises a ValueError that lists what there is, if a name is not among the known ones."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown {kind} {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")


class Registry(Mapping[str, Callable[..., T]], Generic[T]):
    """Factories by name.

    Args:
        kind: What the names stand for, in the words of an error message: "attack", "aggregation rule".
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Decorates a factory (usually a class) so that ``make(name)`` finds it.

        Raises:
            ValueError: The name is taken.
        """

        def decorate(factory: F) -> F:
            if name in self._factories:
                raise ValueError(f"{self._kind} {name!r} is registered already, by {self._factories[name]!r}")
            self._factories[name] = factory
            return factory

        return decorate

    def make(self, name: str, **kwargs: Any) -> T:
        """Builds what ``name`` stands for.

        Raises:
            ValueError: Unknown name, or a parameter that this factory does not take.
        """
        factory = self[name]
        signature = inspect.signature(factory)
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            raise ValueError(f"{self._kind} {name!r} takes {signature}, got {kwargs}: {error}") from error
        hints = _hints(factory)
        for option, value in kwargs.items():
            wanted = _unfit(value, hints.get(option))
            if wanted is not None:
                hint = " (YAML takes 1e-1 for text, and 1.0e-1 for a number)" if isinstance(value, str) else ""
                raise ValueError(f"{self._kind} {name!r}: {option} must be {wanted}, got {value!r}{hint}")
        return factory(**kwargs)

    def __getitem__(self, name: str) -> Callable[..., T]:
        check_known(self._kind, [name], sorted(self._factories))
        return self._factories[name]

    def __contains__(self, name: object) -> bool:
        return name in self._factories

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __len__(self) -> int:
        return len(self._factories)


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """Types of a factory's parameters by name, as far as they can be known."""
    plain = isinstance(factory, type) and "__init__" in vars(factory) and not hasattr(factory, "__dataclass_fields__")
    try:
        return get_type_hints(factory.__init__ if plain else factory)
    except (NameError, TypeError):  # a name that is there for type checkers alone; or no class or function
        return {}


def _unfit(value: Any, hint: Any) -> str | None:
    """What a value should have been, if its type is a switch, a number or one of these or ``None``, and it is not."""
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    if not kinds & {bool, int, float} or not kinds <= {bool, int, float, NoneType}:
        return None
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, bool):
        fits, wanted = bool in kinds, "a number" if float in kinds else "a whole number"
    elif kinds <= {bool, NoneType}:
        fits, wanted = False, "true or false"
    elif float in kinds:
        fits, wanted = isinstance(value, Real), "a number"
    else:
        fits, wanted = isinstance(value, Integral), "a whole number"
    return None if fits else wanted + " or None" * (NoneType in kinds)
