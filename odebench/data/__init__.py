"""Data sets: functions that return tensors in memory, with their provenance.

The keyword arguments of such a function are its settings: the data group without the name. If it has a parameter
`seed`, it gets the training's seed. It returns an `ImageData`, a `DensityData` or a `SeriesData`. To add a data set,
add its function to DATA below, or to the dict DATA of a module that the setting `extensions` names:

    def noise(*, num: int, seed: int) -> ImageData:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (3, num, 1, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (3, num), generator=generator)
        train, validation, test = (ImageSplit(*split) for split in zip(images, labels))
        return ImageData(train, validation, test, num_classes=10, provenance={"source": "uniform noise"})

    DATA = {"noise": noise}
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

from odebench.config.plugins import lookup
from odebench.data.batches import batch_generator, batch_indices, batch_random_state, dequantise, random_crop, to_float
from odebench.data.density import DensityData, Distribution, sampled
from odebench.data.hopper import hopper
from odebench.data.images import ImageData, ImageSplit
from odebench.data.mnist5k import mnist5k
from odebench.data.mnist_files import fashion_mnist, mnist
from odebench.data.periodic import periodic
from odebench.data.physionet import physionet2012
from odebench.data.poisson_events import poisson_events
from odebench.data.potentials import POTENTIALS
from odebench.data.series import SeriesBatch, SeriesData, SeriesSplit
from odebench.data.series_loading import drop_unobserved_series
from odebench.data.spirals import spirals
from odebench.data.tabular import bsds300, gas, hepmass, miniboone, power
from odebench.data.toy_densities import TOY_DENSITIES
from odebench.errors import UsageError

__all__ = [
    "DATA",
    "DensityData",
    "Distribution",
    "ImageData",
    "ImageSplit",
    "SeriesBatch",
    "SeriesData",
    "SeriesSplit",
    "batch_generator",
    "batch_indices",
    "batch_random_state",
    "build_data",
    "dequantise",
    "random_crop",
    "sampled",
    "to_float",
]

Data = ImageData | DensityData | SeriesData

DATA: dict[str, Callable[..., Data]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "mnist5k": mnist5k,
    **TOY_DENSITIES,
    **POTENTIALS,
    "power": power,
    "gas": gas,
    "hepmass": hepmass,
    "miniboone": miniboone,
    "bsds300": bsds300,
    "spirals": spirals,
    "periodic": periodic,
    "hopper": hopper,
    "physionet2012": physionet2012,
    "poisson_events": poisson_events,
}


def build_data(name: str, options: Mapping[str, Any], seed: int, extensions: Sequence[str] = ()) -> Data:
    """Load the data set of this name, built in or from a plugin, and complete its provenance.

    options: the data group's settings without the name. Adds to the provenance the name and, for each split,
    the number of images, samples or series, their shape, and the SHA-256 of their bytes. Drops series without an
    observation and counts them. Raises UsageError for an unknown name, and passes on each UsageError of the data set.
    """
    loader = cast(Callable[..., Any], lookup("data", name, DATA, extensions))
    takes_seed = "seed" in inspect.signature(loader).parameters
    data = loader(**({"seed": seed} if takes_seed else {}), **options)
    if not isinstance(data, Data):
        kinds = " or ".join(kind.__name__ for kind in get_args(Data))
        raise UsageError(f"data set {name} returned {type(data).__name__}, not {kinds} of odebench.data")
    if isinstance(data, SeriesData):
        data = drop_unobserved_series(data)
    provenance = {"name": name, **data.provenance, "splits": data.split_provenance()}
    return dataclasses.replace(data, provenance=provenance)
