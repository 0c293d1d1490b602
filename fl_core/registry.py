"""Names for things that users choose: one registry per kind, one error that lists what there is."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# Types of hints that are checked: what fits, in words, and in words for several.
_KINDS: dict[Any, tuple[Any, str, str]] = {
    bool: (bool, "true or false", "switches"),
    int: (Integral, "a whole number", "whole numbers"),
    float: (Real, "a number", "numbers"),
    str: (str, "text", "names"),
    dict: (Mapping, "a mapping from names to values", "mappings"),
}


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises a ValueError that lists what there is, if a name is not among the known ones."""
    if isinstance(names, str) or not isinstance(names, Iterable):  # a lone name is a collection of letters
        raise ValueError(f"expected a list of names ({kind}), got {names!r}; there are: {', '.join(known)}")
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
        self.check_options(name, kwargs)
        return factory(**kwargs)

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Raises a ValueError, if a parameter is of another type than the factory's hint for it."""
        check_types(options, _hints(self[name]), f"{self._kind} {name!r}: ")

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


def check_fields(instance: object) -> None:
    """Raises a ValueError, if a field of a dataclass is of another type than its hint."""
    check_types(vars(instance), get_type_hints(type(instance)))


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], where: str = "") -> None:
    """Raises a ValueError that names the value, if one is not of the type that its hint says.

    Args:
        values: By name.
        hints: Types by name; a value without one may be anything.
        where: What the message begins with.
    """
    for name, value in values.items():
        wanted = _unfit(value, hints.get(name))
        if wanted is not None:
            hint = yaml_hint(value) if "number" in wanted else ""
            raise ValueError(f"{where}{name} must be {wanted}, got {value!r}{hint}")


def yaml_hint(value: object) -> str:
    """For the end of a message: why what was written as a number may have been read as text."""
    return " (YAML takes 1e-1 for text, and 1.0e-1 for a number)" if isinstance(value, str) else ""


def _unfit(value: Any, hint: Any) -> str | None:
    """What a value should have been, if it is not; ``None`` too where the hint is of types that are not checked."""
    if get_origin(hint) is Sequence:
        (entry,), a_list = get_args(hint), isinstance(value, Sequence) and not isinstance(value, str)
        if entry not in _KINDS or (a_list and all(_unfit(each, entry) is None for each in value)):
            return None
        return f"a list of {_KINDS[entry][2]}"
    kinds = {get_origin(kind) or kind for kind in _alternatives(hint)}
    plain = [kind for kind in _KINDS if kind in kinds and not (kind is int and float in kinds)]
    if not plain or not kinds <= {*_KINDS, NoneType} or (value is None and NoneType in kinds):
        return None
    if any(_fits(value, kind) for kind in plain):
        return None
    return " or ".join([*(_KINDS[kind][1] for kind in plain), *["None"] * (NoneType in kinds)])


def _fits(value: Any, kind: type) -> bool:
    names = kind is not dict or not isinstance(value, Mapping) or all(isinstance(key, str) for key in value)
    return isinstance(value, _KINDS[kind][0]) and (kind is bool) == isinstance(value, bool) and names


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
