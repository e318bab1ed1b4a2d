"""Units of compilation, each kept together with what it was made of."""

from collections.abc import Callable, Collection, Iterable, Mapping

from tidegate.mesh.compiler.compiled import Compiled, Unit, UnitKey, UnitKind
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.resources import ProxyKind, Resource

__all__ = ["Make", "Units"]

Make = Callable[[list[CompileError]], Mapping[ProxyKind, Iterable[Resource]]]
"""Makes the resources of a unit, and notes what is wrong with it."""


class Units:
    """All units as they are now, and which of them changed since they were last given out."""

    def __init__(self) -> None:
        self._units: dict[UnitKey, Unit] = {}
        self._inputs: dict[UnitKey, tuple[object, ...]] = {}
        self._errors: dict[UnitKey, tuple[CompileError, ...]] = {}
        self._changed: set[UnitKey] = set()

    def offer(self, key: UnitKey, inputs: tuple[object, ...], make: Make) -> None:
        """Makes a unit, unless it was made of the same.

        Args:
            key: the unit.
            inputs: all that it is made of.
            make: makes it.
        """
        # Identical values are not looked into; equal ones that are not identical come from a file
        # that was read again.
        if self._inputs.get(key) == inputs:
            return
        errors: list[CompileError] = []
        self._units[key] = Unit.of(make(errors))
        self._inputs[key] = inputs
        self._changed.add(key)
        if errors:
            self._errors[key] = tuple(errors)
        else:
            self._errors.pop(key, None)

    def remove(self, key: UnitKey) -> None:
        """Forgets a unit, if there is one."""
        if self._units.pop(key, None) is not None:
            del self._inputs[key]
            self._errors.pop(key, None)
            self._changed.add(key)

    def keep(self, kind: UnitKind, names: Collection[str]) -> None:
        """Forgets the units of a kind that are not named."""
        for key in [key for key in self._units if key[0] is kind and key[1] not in names]:
            self.remove(key)

    def errors(self) -> Iterable[CompileError]:
        """What is wrong with the units."""
        return (error for each in self._errors.values() for error in each)

    def compiled(self, last: Compiled | None) -> Compiled:
        """All units as one value.

        Args:
            last: what this gave the last time.
        """
        made = Compiled(dict(self._units), frozenset(self._changed), last and last.stamp)
        self._changed.clear()
        return made
