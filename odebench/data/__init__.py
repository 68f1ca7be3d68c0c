"""Data sets: each yields tensors held whole and knows its own provenance.

A data set is a function that takes its settings (the data group without its name) by keyword, and the
training's seed where it names one, and returns an `ImageData`. A new one is one such function in DATA below,
or in a dict DATA of a module that the setting `extensions` names:

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

from odebench.data.batches import batch_generator, batch_indices, random_crop, to_float
from odebench.data.images import ImageData, ImageSplit
from odebench.data.mnist_files import fashion_mnist, mnist
from odebench.data.mnist_small import mnist5k
from odebench.data.splits import hold_out, select, stratified_order
from odebench.errors import UsageError
from odebench.extensions import find

__all__ = [
    "DATA",
    "ImageData",
    "ImageSplit",
    "batch_generator",
    "batch_indices",
    "build_data",
    "hold_out",
    "random_crop",
    "select",
    "stratified_order",
    "to_float",
]

DATA: dict[str, Callable[..., ImageData]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "mnist5k": mnist5k,
}


def build_data(name: str, options: Mapping[str, Any], seed: int, extensions: Sequence[str] = ()) -> ImageData:
    """The data set of this name, ours or an extension's, with its provenance completed.

    options: the data group's settings without the name. The provenance gains the name and, for each split,
    the number of images, their shape, and the SHA-256 of their bytes. Raises UsageError for an unknown name,
    and whatever UsageError the data set raises.
    """
    loader = cast(Callable[..., ImageData], find("DATA", name, DATA, extensions))
    takes_seed = "seed" in inspect.signature(loader).parameters
    data = loader(**({"seed": seed} if takes_seed else {}), **options)
    if not isinstance(data, ImageData):
        raise UsageError(f"data set {name} returned {type(data).__name__}, not odebench.data.ImageData")
    splits = {
        split_name: {"images": len(split), "shape": list(split.images.shape[1:]), "sha256": split.sha256()}
        for split_name, split in data.splits().items()
    }
    return dataclasses.replace(data, provenance={"name": name, **data.provenance, "splits": splits})
