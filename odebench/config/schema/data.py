"""The data sets: which tasks can use them, and their options."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from odebench.config.schema.base import Choice, FractionOrOne, PositiveFloat, PositiveInt, Range, Seed

SeriesMode = Literal["interpolation", "extrapolation"]
# The settings that determine the splits of every data set; some data sets have more, in ``split_keys``.
SPLIT_KEYS = ("validation", "train_limit")


@dataclass(frozen=True)
class ImageDataSettings(Choice):
    """The settings of ``mnist``, ``fashion_mnist`` and ``mnist5k``."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "density")
    root: str | None
    validation: PositiveInt
    train_limit: PositiveInt | None
    augment: bool
    download: bool


@dataclass(frozen=True)
class ToyDensitySettings(Choice):
    """The settings of ``pinwheel``, ``checkerboard`` and ``potential_1`` to ``potential_4``.

    samples: the size of the training set.
    """

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    samples: PositiveInt
    fresh: bool
    validation: PositiveInt
    test: PositiveInt


@dataclass(frozen=True)
class NoisyToySettings(ToyDensitySettings):
    """The settings of ``swissroll``, ``eight_gaussians``, ``two_spirals`` and ``rings``."""

    noise: PositiveFloat


@dataclass(frozen=True)
class ScaledToySettings(NoisyToySettings):
    """The settings of ``two_circles`` and ``two_moons``."""

    scale: PositiveFloat


@dataclass(frozen=True)
class TabularSettings(Choice):
    """The settings of ``power``, ``gas``, ``hepmass``, ``miniboone`` and ``bsds300``."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    root: str | None


@dataclass(frozen=True)
class SeriesDataSettings(Choice):
    """Settings of every data set of series.

    random_state: the data set's own seed; another one simulates other series.
    """

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    validation: PositiveInt
    train_limit: PositiveInt | None
    random_state: Seed


@dataclass(frozen=True)
class SpiralsSettings(SeriesDataSettings):
    """The settings of ``spirals``.

    observed: the number of points of each spiral. beyond: the number of later times to predict.
    """

    observed: PositiveInt
    beyond: Annotated[int, Range(at_least=1, at_most=800)]


@dataclass(frozen=True)
class PeriodicSettings(SeriesDataSettings):
    """The settings of ``periodic``.

    observed: the fraction of the points that are inputs.
    """

    mode: SeriesMode
    observed: FractionOrOne
    amplitude: tuple[PositiveFloat, PositiveFloat]
    shared_times: bool


@dataclass(frozen=True)
class HopperSettings(SeriesDataSettings):
    """The settings of ``hopper``, whose trajectories are fixed; random_state determines how they are split."""

    split_keys: ClassVar[tuple[str, ...]] = (*SPLIT_KEYS, "random_state")
    root: str | None
    mode: SeriesMode
    observed: FractionOrOne


@dataclass(frozen=True)
class PhysioNet2012Settings(HopperSettings):
    """The settings of ``physionet2012``; quantisation is in minutes."""

    split_keys: ClassVar[tuple[str, ...]] = (*HopperSettings.split_keys, "sets")
    sets: Literal["ab", "a", "b"]
    quantisation: Annotated[int, Range(at_least=1, at_most=1440)]
    static: bool


@dataclass(frozen=True)
class PoissonEventsSettings(SeriesDataSettings):
    """The settings of ``poisson_events``; level is in events, and frequency in periods, per unit of time."""

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
