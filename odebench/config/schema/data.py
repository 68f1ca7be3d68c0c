"""The data sets: which tasks can use them, and their options."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from odebench.config.parsing import Range
from odebench.config.schema.number_types import PositiveFloat, PositiveInt

FractionOrOne = Annotated[float, Range(above=0, at_most=1)]
SeriesMode = Literal["interpolation", "extrapolation"]
# The settings that say which samples are for training, for validation and for test; of some sets others do, too.
SPLIT_KEYS = ("validation", "train_limit")


@dataclass(frozen=True)
class ImageDataSettings:
    """mnist, fashion_mnist and mnist5k."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "density")
    name: str
    root: str | None
    validation: PositiveInt
    train_limit: PositiveInt | None
    augment: bool
    download: bool


@dataclass(frozen=True)
class ToyDensitySettings:
    """pinwheel, checkerboard, and potential_1 to potential_4; samples is the size of the training set."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    name: str
    samples: PositiveInt
    fresh: bool
    validation: PositiveInt
    test: PositiveInt


@dataclass(frozen=True)
class NoisyToySettings(ToyDensitySettings):
    """swissroll, eight_gaussians, two_spirals and rings."""

    noise: PositiveFloat


@dataclass(frozen=True)
class ScaledToySettings(NoisyToySettings):
    """two_circles and two_moons."""

    scale: PositiveFloat


@dataclass(frozen=True)
class TabularSettings:
    """power, gas, hepmass, miniboone and bsds300."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    name: str
    root: str | None


@dataclass(frozen=True)
class SeriesDataSettings:
    """What the sets of series share; random_state is the data set's own seed: another simulates other series."""

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    name: str
    validation: PositiveInt
    train_limit: PositiveInt | None
    random_state: Annotated[int, Range(at_least=0, below=2**32)]


@dataclass(frozen=True)
class SpiralsSettings(SeriesDataSettings):
    """spirals; observed points of each, and times beyond them for prediction."""

    observed: PositiveInt
    beyond: Annotated[int, Range(at_least=1, at_most=800)]


@dataclass(frozen=True)
class PeriodicSettings(SeriesDataSettings):
    """periodic; observed is the share of the points that is shown."""

    mode: SeriesMode
    observed: FractionOrOne
    amplitude: tuple[PositiveFloat, PositiveFloat]
    shared_times: bool


@dataclass(frozen=True)
class HopperSettings(SeriesDataSettings):
    """hopper; its runs are always the same, and random_state divides them."""

    split_keys: ClassVar[tuple[str, ...]] = (*SPLIT_KEYS, "random_state")
    root: str | None
    mode: SeriesMode
    observed: FractionOrOne


@dataclass(frozen=True)
class PhysioNet2012Settings(HopperSettings):
    """physionet2012; quantisation in minutes."""

    split_keys: ClassVar[tuple[str, ...]] = (*HopperSettings.split_keys, "sets")
    sets: Literal["ab", "a", "b"]
    quantisation: Annotated[int, Range(at_least=1, at_most=1440)]
    static: bool


@dataclass(frozen=True)
class PoissonEventsSettings(SeriesDataSettings):
    """poisson_events; level in events a unit of time, frequency in periods."""

    series: Annotated[int, Range(at_least=201)]
    level: PositiveFloat
    frequency: tuple[PositiveFloat, PositiveFloat]
    observations: bool


DATA: dict[str, type[Any]] = {
    **dict.fromkeys(("mnist", "fashion_mnist", "mnist5k"), ImageDataSettings),
    **dict.fromkeys(("two_circles", "two_moons"), ScaledToySettings),
    **dict.fromkeys(("swissroll", "eight_gaussians", "two_spirals", "rings"), NoisyToySettings),
    **dict.fromkeys(
        ("pinwheel", "checkerboard", "potential_1", "potential_2", "potential_3", "potential_4"), ToyDensitySettings
    ),
    **dict.fromkeys(("power", "gas", "hepmass", "miniboone", "bsds300"), TabularSettings),
    "spirals": SpiralsSettings,
    "periodic": PeriodicSettings,
    "hopper": HopperSettings,
    "physionet2012": PhysioNet2012Settings,
    "poisson_events": PoissonEventsSettings,
}
