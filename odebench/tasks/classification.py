"""The task of classifying images."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from odebench.config.settings import Settings
from odebench.data import ImageData, ImageSplit, batch_generator, batch_indices, random_crop, to_float
from odebench.ode import Stats
from odebench.plots.confusion import confusion_matrix
from odebench.plots.features import features_through_depth
from odebench.tasks.build import build_model
from odebench.tasks.task import Loss, Task

NUM_STATES, NUM_TIMES = 400, 10  # images, and times of the ODE, in the figure of hidden states


class ClassificationTask(Task):
    """Classify images with the cross-entropy loss; see ``odebench.tasks.Task`` for the methods."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        """Build the model. Raises UsageError as ``Task`` does."""
        super().__init__(settings, device, ImageData)
        data: ImageData = self._data
        self._splits = {name: split.to(device) for name, split in data.splits().items()}
        self._train = self._splits["train"]
        self._autocast = torch.autocast(device.type, torch.bfloat16, settings.trainer.precision == "bf16")
        _, in_channels, image_size, _ = data.train.images.shape
        self.data_properties = {"in_channels": in_channels, "image_size": image_size, "num_classes": data.num_classes}
        self.model = build_model(settings, self.data_properties).to(device)

    @property
    def quantities(self) -> list[str]:
        """See ``odebench.tasks.Task``."""
        return ["loss", "accuracy", *(["nfe"] if self.eval_solve else [])]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return augmented uint8 images [B, C, H, W] and labels [B]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        chosen = batch_indices(len(self._train), self.batch_size, self._seed, epoch, index).to(self._device)
        images, labels = self._train.images[chosen], self._train.labels[chosen]
        if self._data.crop_padding:
            images = random_crop(images, self._data.crop_padding, batch_generator(self._seed, epoch, index))
        return images, labels

    def loss(self, batch: tuple[Tensor, Tensor]) -> Loss:
        """Compute the mean cross-entropy over the batch."""
        images, labels = batch
        with self._autocast:
            logits, solves = self.model.train()(to_float(images), self._solve)
        value = F.cross_entropy(_at_least_float32(logits), labels, **self._loss_options)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        metrics = {"train/loss": value.detach(), "train/accuracy": accuracy}
        return self._add_penalty(Loss(value, metrics, solves))

    @torch.no_grad()
    def evaluate(self, split: str, model: nn.Module | None = None) -> dict[str, float]:
        """Compute the metrics of a split; see ``odebench.tasks.Task``.

        low, high: the ends of the 95 % Wilson interval of the accuracy. images: their number. nfe: mean over batches.
        """
        model = (model or self.model).eval()
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        num_correct, nfe = 0, []
        for images, labels in self._batches(self._splits[split]):
            logits, solves = self._evaluate(model, images)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            num_correct += int((logits.argmax(1) == labels).sum())
            nfe.append(sum(stats.nfe for stats in solves))
        num = len(self._splits[split])
        low, high = binomtest(num_correct, num).proportion_ci(method="wilson")
        metrics = {"loss": loss.item() / num, "accuracy": num_correct / num, "low": low, "high": high, "images": num}
        return metrics | ({"nfe": sum(nfe) / len(nfe)} if self.eval_solve else {})

    def limit_split(self, split: str, num: int) -> None:
        """See ``odebench.tasks.Task``."""
        part = self._splits[split]
        self._splits[split] = ImageSplit(part.images[:num], part.labels[:num])

    def format_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Format the accuracy, with its interval if the metrics contain it, and the loss."""
        accuracy = f"{100 * metrics['accuracy']:.2f} %"
        if "low" in metrics:
            low, high = (f"{100 * metrics[end]:.2f}" for end in ("low", "high"))
            accuracy += f"  (95 % interval {low} to {high}, {metrics['images']:,} images)"
        return [("accuracy", accuracy), ("loss", f"{metrics['loss']:.4f}")]

    @torch.no_grad()
    def predict(self, split: str) -> dict[str, list[Any]]:
        """Return index, label, prediction and the prediction's probability for each image, in the data set's order."""
        probabilities = [
            self._evaluate(self.model.eval(), images)[0].softmax(1) for images, _ in self._batches(self._splits[split])
        ]
        probability, prediction = torch.cat(probabilities).max(1)
        return {
            "index": list(range(len(prediction))),
            "label": self._splits[split].labels.tolist(),
            "prediction": prediction.tolist(),
            "probability": [round(p, 6) for p in probability.tolist()],
        }

    @torch.no_grad()
    def outputs(self, split: str, num: int) -> Tensor:
        """Return the logits [num, classes]."""
        return self._evaluate(self.model.eval(), self._splits[split].images[:num])[0]

    @torch.no_grad()
    def figures(self, split: str = "test", animate: bool = True) -> dict[str, Figure]:
        """Draw the confusion matrix of a split's images, and their hidden states through an ODE."""
        rows = self.predict(split)
        counts = np.zeros((self._data.num_classes,) * 2, dtype=int)
        np.add.at(counts, (rows["label"], rows["prediction"]), 1)
        return {"confusion": confusion_matrix(counts)} | self._depth_figure(self._splits[split])

    def _depth_figure(self, part: ImageSplit) -> dict[str, Figure]:
        """Draw the states of some images at several times of the ODE, if the model solves one from 0 on."""
        images, labels = part.images[:NUM_STATES], part.labels[:NUM_STATES].cpu().numpy()
        found: list[tuple[list[float], Tensor]] = []

        eval_solve = self.eval_solve
        if eval_solve is None or len(images) < 3:
            return {}

        def solve(field: Any, y0: Any, t: Any, **options: Any) -> Any:
            times = torch.linspace(float(t[0]), float(t[-1]), NUM_TIMES).tolist()
            solution = eval_solve(field, y0, times, **options)
            if isinstance(solution.y, Tensor):
                found.append((times, solution.y.flatten(2).float().cpu()))
            return solution

        with self._autocast:
            self.model.eval()(to_float(images), solve)
        if len(found) != 1:
            return {}
        times, states = found[0]
        components, shares = principal_components(states)
        return {"features": features_through_depth(components, labels, times, shares)}

    def _evaluate(self, model: nn.Module, images: Tensor) -> tuple[Tensor, tuple[Stats, ...]]:
        """Return the logits (bfloat16 is converted to float32) and the statistics of the solves."""
        with self._autocast:
            logits, solves = model(to_float(images), self.eval_solve)
        return _at_least_float32(logits), solves

    def _batches(self, split: ImageSplit) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(split.images.split(self._eval_batch_size), split.labels.split(self._eval_batch_size), strict=True)


def principal_components(states: Tensor) -> tuple[np.ndarray, tuple[float, float]]:
    """Project states [T, N, D] of all times onto their first two components: [T, N, 2], and shares of the variance."""
    centred = states.flatten(0, 1) - states.mean((0, 1))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        scores, sizes, _ = torch.svd_lowrank(centred, q=min(6, *centred.shape))
    first, second = (sizes[:2].square() / centred.square().sum()).tolist()
    return (scores * sizes)[:, :2].unflatten(0, states.shape[:2]).numpy(), (first, second)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
