"""The base class of all choices, and types of numbers with a range."""

from dataclasses import dataclass
from typing import Annotated, ClassVar


@dataclass(frozen=True)
class Choice:
    """The settings of the option that was chosen in a group, with the option's name.

    tasks: the tasks that a model, data set or loss can be used for; empty for one of a plugin, which fits any task.
    """

    tasks: ClassVar[tuple[str, ...]] = ()
    name: str


@dataclass(frozen=True)
class Range:
    """The bounds of a number; None means that there is no bound."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def violation(self, value: float) -> str | None:
        """Return a message about the bound that ``value`` violates, or None."""
        if self.above is not None and not value > self.above:
            return f"must be greater than {self.above}"
        if self.at_least is not None and not value >= self.at_least:
            return f"must be at least {self.at_least}"
        if self.below is not None and not value < self.below:
            return f"must be less than {self.below}"
        if self.at_most is not None and not value <= self.at_most:
            return f"must be at most {self.at_most}"
        return None


PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(at_least=0)]
PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
Fraction = Annotated[float, Range(above=0, below=1)]
FractionOrZero = Annotated[float, Range(at_least=0, below=1)]
FractionOrOne = Annotated[float, Range(above=0, at_most=1)]
UnitInterval = Annotated[float, Range(at_least=0, at_most=1)]
Seed = Annotated[int, Range(at_least=0, below=2**32)]
