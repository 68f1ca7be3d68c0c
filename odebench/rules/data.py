"""The data sets: which tasks can use them, and their options."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from odebench.rules.numbers import Count, Positive
from odebench.typed import Range

Portion = Annotated[float, Range(above=0, at_most=1)]
Mode = Literal["interpolation", "extrapolation"]
# The settings that say which samples are for training, for validation and for test; of some sets others do, too.
DIVIDING = ("validation", "train_limit")


@dataclass(frozen=True)
class Images:
    """mnist, fashion_mnist and mnist5k."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "density")
    name: str
    root: str | None
    validation: Count
    train_limit: Count | None
    augment: bool
    download: bool


@dataclass(frozen=True)
class Toy:
    """pinwheel, checkerboard, and potential_1 to potential_4; samples is the size of the training set."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    name: str
    samples: Count
    fresh: bool
    validation: Count
    test: Count


@dataclass(frozen=True)
class NoisyToy(Toy):
    """swissroll, eight_gaussians, two_spirals and rings."""

    noise: Positive


@dataclass(frozen=True)
class ScaledToy(NoisyToy):
    """two_circles and two_moons."""

    scale: Positive


@dataclass(frozen=True)
class Table:
    """power, gas, hepmass, miniboone and bsds300."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    name: str
    root: str | None


@dataclass(frozen=True)
class SeriesSet:
    """What the sets of series share; random_state is the data set's own seed: another simulates other series."""

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    name: str
    validation: Count
    train_limit: Count | None
    random_state: Annotated[int, Range(at_least=0, below=2**32)]


@dataclass(frozen=True)
class Spirals(SeriesSet):
    """spirals; observed points of each, and times beyond them for prediction."""

    observed: Count
    beyond: Annotated[int, Range(at_least=1, at_most=800)]


@dataclass(frozen=True)
class Periodic(SeriesSet):
    """periodic; observed is the share of the points that is shown."""

    mode: Mode
    observed: Portion
    amplitude: tuple[Positive, Positive]
    shared_times: bool


@dataclass(frozen=True)
class Hopper(SeriesSet):
    """hopper; its runs are always the same, and random_state divides them."""

    dividing: ClassVar[tuple[str, ...]] = (*DIVIDING, "random_state")
    root: str | None
    mode: Mode
    observed: Portion


@dataclass(frozen=True)
class PhysioNet2012(Hopper):
    """physionet2012; quantisation in minutes."""

    dividing: ClassVar[tuple[str, ...]] = (*Hopper.dividing, "sets")
    sets: Literal["ab", "a", "b"]
    quantisation: Annotated[int, Range(at_least=1, at_most=1440)]
    static: bool


@dataclass(frozen=True)
class PoissonEvents(SeriesSet):
    """poisson_events; level in events a unit of time, frequency in periods."""

    series: Annotated[int, Range(at_least=201)]
    level: Positive
    frequency: tuple[Positive, Positive]
    observations: bool


DATA: dict[str, type[Any]] = {
    **dict.fromkeys(("mnist", "fashion_mnist", "mnist5k"), Images),
    **dict.fromkeys(("two_circles", "two_moons"), ScaledToy),
    **dict.fromkeys(("swissroll", "eight_gaussians", "two_spirals", "rings"), NoisyToy),
    **dict.fromkeys(("pinwheel", "checkerboard", "potential_1", "potential_2", "potential_3", "potential_4"), Toy),
    **dict.fromkeys(("power", "gas", "hepmass", "miniboone", "bsds300"), Table),
    "spirals": Spirals,
    "periodic": Periodic,
    "hopper": Hopper,
    "physionet2012": PhysioNet2012,
    "poisson_events": PoissonEvents,
}
