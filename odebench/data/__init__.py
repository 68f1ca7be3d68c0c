"""Data sets: each yields tensors held whole and knows its own provenance.

A data set is a function that takes its settings (the data group without its name) by keyword, and the
training's seed where it names one, and returns an `ImageData`, a `DensityData` or a `SeriesData`. A new one is
one such function in DATA below, or in a dict DATA of a module that the setting `extensions` names:

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
from typing import Any, cast

from odebench.config.plugins import lookup
from odebench.data.batches import batch_generator, batch_indices, batch_random_state, random_crop, to_float
from odebench.data.density import DensityData, Distribution, sampled
from odebench.data.dequantisation import dequantise
from odebench.data.hopper import hopper
from odebench.data.images import ImageData, ImageSplit
from odebench.data.mnist_files import fashion_mnist, mnist
from odebench.data.mnist_small import mnist5k
from odebench.data.periodic import periodic
from odebench.data.physionet import physionet2012
from odebench.data.poisson_events import poisson_events
from odebench.data.series import SeriesBatch, SeriesData, SeriesSplit
from odebench.data.series_loading import without_unobserved
from odebench.data.spirals import spirals
from odebench.data.splits import hold_out, select, stratified_order
from odebench.data.tabular import bsds300, gas, hepmass, miniboone, power
from odebench.data.targets import TARGETS
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
    "hold_out",
    "random_crop",
    "sampled",
    "select",
    "stratified_order",
    "to_float",
]

Data = ImageData | DensityData | SeriesData

DATA: dict[str, Callable[..., Data]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "mnist5k": mnist5k,
    **TOY_DENSITIES,
    **TARGETS,
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


def _image_facts(data: ImageData) -> dict[str, dict[str, Any]]:
    return {
        name: {"images": len(split), "shape": list(split.images.shape[1:]), "sha256": split.sha256()}
        for name, split in data.splits().items()
    }


# Kind of data -> what its provenance gains: for each split, the number of samples, their shape, a hash.
_FACTS: dict[type, Callable[[Any], dict[str, dict[str, Any]]]] = {
    ImageData: _image_facts,
    DensityData: DensityData.split_facts,
    SeriesData: SeriesData.split_facts,
}


def build_data(name: str, options: Mapping[str, Any], seed: int, extensions: Sequence[str] = ()) -> Data:
    """The data set of this name, ours or an extension's, with its provenance completed.

    options: the data group's settings without the name. The provenance gains the name and, for each split,
    the number of images, samples or series, their shape, and the SHA-256 of their bytes. Series without an observation
    are kept out and counted. Raises UsageError for an unknown name, and whatever UsageError the data set raises.
    """
    loader = cast(Callable[..., Any], lookup("DATA", name, DATA, extensions))
    takes_seed = "seed" in inspect.signature(loader).parameters
    data = loader(**({"seed": seed} if takes_seed else {}), **options)
    facts = next((facts for kind, facts in _FACTS.items() if isinstance(data, kind)), None)
    if facts is None:
        kinds = " or ".join(kind.__name__ for kind in _FACTS)
        raise UsageError(f"data set {name} returned {type(data).__name__}, not {kinds} of odebench.data")
    if isinstance(data, SeriesData):
        data = without_unobserved(data)
    provenance = {"name": name, **data.provenance, "splits": facts(data)}
    return cast(Data, dataclasses.replace(data, provenance=provenance))
