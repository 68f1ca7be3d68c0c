"""Names, units and numbers as tables show them."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from odebench.config.schema.quantities import higher_is_better
from odebench.record import layout

PARAMETERS = "parameters"
FORWARD, BACKWARD = "final/nfe_forward", "final/nfe_backward"
PEAK_MIB, STEP_MS, MINUTES = "final/peak_mib", "final/step_ms", "final/minutes"
SAVED_MIB = "final/saved_mib"
EMPTY = "-"
MAX_DECIMALS = 5  # above this, use a power of ten
MAX_DIGITS = 7  # of the largest number of a column whose numbers have the same decimals
# Headings of the tags that are not of a quantity, without unit.
_HEADINGS = {
    "best/step": "best step",
    "best/epoch": "best epoch",
    FORWARD: "NFE forward",
    BACKWARD: "NFE backward",
    PEAK_MIB: "peak memory",
    SAVED_MIB: "memory saved for backward",
    "final/flops": "FLOPs per step",
    STEP_MS: "step time",
    "final/samples_per_s": "samples/s",
    MINUTES: "training time",
}
_SPLITS = {"best": "validation", "final/test": "test", "final/val": "last validation", "final/train": "last training"}
_ABBREVIATIONS = ("nll", "kl", "mse", "rmse", "nfe", "elbo", "auc")
# Units that headings leave out: the name says them.
_KNOWN_UNITS = ("evaluations", "steps", "epochs", "FLOP", "samples/s")
# Tags without a best value. Without a backward solve, the backward NFE is 0, however much the gradient costs.
_NEUTRAL = (PARAMETERS, BACKWARD, "best/step", "best/epoch")
DESCRIPTIONS = {
    PARAMETERS: "number of trained parameters",
    "runs": "completed runs, and all runs if some failed",
}


def column_title(key: str) -> str:
    """The column title of a setting: ``model`` for model.name."""
    return key.removesuffix(".name")


def setting_headings(keys: Sequence[str]) -> dict[str, str]:
    """Readable column titles of settings by key: ``batch size``, or ``trainer batch size`` if two end alike."""
    ends = [column_title(key).rpartition(".")[2] for key in keys]
    titles = [end if ends.count(end) == 1 else column_title(key) for key, end in zip(keys, ends, strict=True)]
    return {key: re.sub("[._]", " ", title) for key, title in zip(keys, titles, strict=True)}


def heading(tag: str) -> str:
    """A readable column title of a tag, with its unit: ``test accuracy (%)``, ``peak memory (MiB)``."""
    name, unit = name_and_unit(tag)
    return f"{name} ({unit})" if unit else name


def name_and_unit(tag: str) -> tuple[str, str]:
    """A readable name of a tag, and the unit of its displayed values, "" if the name says it."""
    unit = display_unit(tag)
    name = _HEADINGS.get(tag)
    if name is None:
        split, quantity = _split_and_quantity(tag)
        name = " ".join(filter(None, [_SPLITS.get(split, split), words_of(quantity.removesuffix(f"_{unit}"))]))
    return name, "" if unit in _KNOWN_UNITS else unit


def words_of(name: str) -> str:
    """The words of a name: ``test_nll`` -> ``test NLL``."""
    return " ".join(word.upper() if word in _ABBREVIATIONS else word for word in name.split("_"))


def _split_and_quantity(tag: str) -> tuple[str, str]:
    """``final/test_accuracy`` -> ``final/test``, ``accuracy``; ``best/loss`` -> ``best``, ``loss``."""
    first, _, rest = tag.rpartition("/")
    split = next((split for split in _SPLITS if first == "final" and tag.startswith(f"{split}_")), first)
    return split, tag.removeprefix(split)[1:] if split else rest


def describe_tag(tag: str) -> str:
    """The description of a tag."""
    return DESCRIPTIONS.get(tag) or (layout.TAGS[tag].description if tag in layout.TAGS else "")


def display_scale(tag: str) -> float:
    """The factor that converts stored to displayed values."""
    return 100.0 if display_unit(tag) == "%" else 1.0


def display_unit(tag: str) -> str:
    """The unit of displayed values: fractions are displayed in percent."""
    unit = layout.TAGS[tag].unit if tag in layout.TAGS else ""
    return "%" if unit == "fraction" else unit


def tag_title(tag: str) -> str:
    """The column title of a tag, with a percent sign if it is a fraction."""
    return tag + " (%)" * (display_unit(tag) == "%")


def format_value(tag: str, mean: float, std: float = math.nan) -> str:
    """Format a stored value of a tag as `format_number` does, in displayed units."""
    return format_number(display_scale(tag) * mean, display_scale(tag) * std)


def format_setting(value: Any) -> str:
    """Format the value of a setting."""
    if value is None:
        return EMPTY
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_number(mean: float, std: float = math.nan, decimals: int | None = None) -> str:
    """Format mean ± std with the decimals, by default two digits of std, or four digits of the mean if there is none.

    Small numbers without given decimals have a power of ten: ``(1.60 ± 0.20)e-07``.
    """
    if not math.isfinite(mean):
        return EMPTY
    has_std = std > 1e-9 * abs(mean)  # otherwise one run, or runs that differ only by rounding
    if decimals is None and not has_std:
        return f"{mean:,.0f}" if 1000 <= abs(mean) < 1e7 else f"{mean:.4g}"
    digits = _digits(std) if decimals is None else decimals
    if digits <= MAX_DECIMALS:
        return f"{mean:,.{digits}f}" + (f" ± {std:,.{digits}f}" if has_std else "")
    power = math.floor(math.log10(max(abs(mean), std)))
    mean, std = mean / 10.0**power, std / 10.0**power
    return f"({mean:.{_digits(std)}f} ± {std:.{_digits(std)}f})e{power:+03d}"


def _digits(std: float) -> int:
    """The number of decimals that shows two digits of std."""
    return max(1 - math.floor(math.log10(std)), 0)


def column_decimals(numbers: Sequence[tuple[float, float]]) -> int | None:
    """Decimals for all means and standard deviations of a column; None if the numbers differ too much in size.

    They show two digits of the median standard deviation, or else four digits of the largest mean, and at least two of
    the smallest; decimals that would all be zero are left out.
    """
    means = [abs(mean) for mean, _ in numbers if math.isfinite(mean) and mean]
    if not means:
        return 0
    stds = sorted(std for mean, std in numbers if std > 1e-9 * abs(mean))
    if stds:
        decimals = _digits(stds[len(stds) // 2])
    else:
        texts = [f"{mean:.4g}" for mean in means]
        if any("e" in text for text in texts):
            return None
        needed = max(len(text.partition(".")[2]) for text in texts)
        least, most = 1 - math.floor(math.log10(min(means))), max(3 - math.floor(math.log10(max(means))), 0)
        decimals = min(needed, max(least, most))
    digits = decimals + math.floor(math.log10(max(means))) + 1
    return decimals if decimals <= MAX_DECIMALS and digits <= MAX_DIGITS else None


def better_of(tag: str) -> Callable[..., Any] | None:
    """`max` or `min`, which gives the best of a tag's values; None for a tag that is neither good nor bad."""
    if tag in _NEUTRAL or tag not in layout.TAGS:
        return None
    return max if higher_is_better(_split_and_quantity(tag)[1]) or tag == "final/samples_per_s" else min
