"""Types of numbers with a range."""

from typing import Annotated

from odebench.config.parsing import Range

PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(at_least=0)]
PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
Fraction = Annotated[float, Range(above=0, below=1)]
FractionOrZero = Annotated[float, Range(at_least=0, below=1)]
