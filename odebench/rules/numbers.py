"""The ranges that numbers of settings come in."""

from typing import Annotated

from odebench.typed import Range

Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Count = Annotated[int, Range(at_least=1)]
Whole = Annotated[int, Range(at_least=0)]
Fraction = Annotated[float, Range(above=0, below=1)]
Share = Annotated[float, Range(at_least=0, below=1)]
