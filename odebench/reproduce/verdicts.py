"""Verdicts on results by 95 % intervals: against a published value, and of one row against another.

An interval is over seeds (Student's t), over test samples (Wilson's for an accuracy, else by the standard error of a
mean), or over both, with the half-widths added in quadrature. An RMSE or MSE is positive and often skewed: its
intervals are those of its logarithm, and a difference is that of logarithms.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from odebench.config.schema.quantities import higher_is_better
from odebench.reporting.formatting import MINUTES, PARAMETERS, PEAK_MIB, SAVED_MIB, format_number, format_value
from odebench.reporting.published import PublishedValue, format_percent, is_partial_budget
from odebench.reporting.runs import mean_and_std

CONFIDENCE = 0.95
Z = 1.959963984540054  # half-width of a normal interval, in standard deviations
MAX_SEEDS = 1000
# Quantities that depend neither on the seed nor on the training.
EXACT_TAGS = (PARAMETERS, PEAK_MIB, SAVED_MIB)
CHANCE_AUC = 0.5
SMALLEST_ERROR = 1e-300  # an error of 0 has no logarithm
LARGEST_LOGARITHM = 700.0

REPRODUCED, BETTER, WORSE, TIE = "reproduced", "better", "worse", "tie"
CANNOT_TELL, PARTIAL, OTHER_NETWORK = "cannot tell", "partial budget", "different architecture"
OTHER_MACHINE, MISSING = "another machine", "not measured"
# All verdicts, in the order in which they are counted.
VERDICTS = (REPRODUCED, BETTER, TIE, CANNOT_TELL, WORSE, OTHER_NETWORK, PARTIAL, OTHER_MACHINE, MISSING)


class Verdict(NamedTuple):
    """One of VERDICTS, and the text that gives its size and reason."""

    word: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.text}" if self.text else self.word


class Interval(NamedTuple):
    """A 95 % interval; both ends are NaN if nothing is known about the error."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the width."""
        return 0.5 * (self.high - self.low)


@dataclass(frozen=True)
class Measurement:
    """A number of a row: mean and standard deviation over seeds, and what is known of its error over test samples.

    values: seed -> value; empty if only mean and deviation are known. samples: the number of test samples of an
    accuracy. std_error: the standard error over test samples; NaN: unknown. share: the fraction of the published
    training that was completed; None: unknown. missing: why a run is missing, or "".
    """

    row: str
    tag: str
    mean: float
    std: float = math.nan
    num_seeds: int = 1
    values: Mapping[str, float] = field(default_factory=dict)
    samples: int | None = None
    std_error: float = math.nan
    share: float | None = None
    missing: str = ""

    @property
    def is_partial(self) -> bool:
        """Whether the number comes from a training shorter than the published one."""
        return is_partial_budget(self.share) and self.tag not in EXACT_TAGS

    @property
    def is_error(self) -> bool:
        """Whether intervals are those of the logarithm."""
        return re.search(r"(mse|_error)(_|$)", self.tag) is not None

    def to_scale(self, value: float) -> float:
        """A value on the scale on which intervals are symmetric."""
        return math.log(max(value, SMALLEST_ERROR)) if self.is_error else value

    @property
    def scaled_values(self) -> dict[str, float]:
        """Seed -> value, on that scale."""
        return {seed: self.to_scale(value) for seed, value in self.values.items()}

    @property
    def scaled(self) -> tuple[float, float]:
        """Mean and standard deviation over seeds, on that scale; those of a log-normal if the seeds are not known."""
        if not self.is_error:
            return self.mean, self.std
        if self.values:
            return mean_and_std(list(self.scaled_values.values()))
        variance = math.log1p((self.std / max(self.mean, SMALLEST_ERROR)) ** 2)
        return self.to_scale(self.mean) - (variance if math.isfinite(variance) else 0.0) / 2, math.sqrt(variance)

    @property
    def scaled_interval(self) -> Interval:
        """The 95 % interval on that scale."""
        if self.tag in EXACT_TAGS:
            return Interval(self.mean, self.mean)
        centre, std = self.scaled
        over_seeds = t_half_width(std, self.num_seeds)
        widths = [_in_quadrature([over_seeds, width]) for width in self.test_widths]
        return Interval(centre - widths[0], centre + widths[1])

    @property
    def interval(self) -> Interval:
        """The 95 % interval; of accuracies and AUCs between 0 and 1."""
        if self.tag.endswith(("accuracy", "auc")):
            return Interval(*(min(max(end, 0.0), 1.0) for end in self.scaled_interval))
        if not self.is_error:
            return self.scaled_interval
        # Errors of 0 make an interval of logarithms that ends beyond the largest number.
        return Interval(*(math.exp(min(end, LARGEST_LOGARITHM)) for end in self.scaled_interval))

    @property
    def test_widths(self) -> tuple[float, float]:
        """Widths of the scaled interval over test samples, below and above the mean; NaN if unknown."""
        if not self.samples:
            width = Z * self.std_error / (max(self.mean, SMALLEST_ERROR) if self.is_error else 1.0)
            return width, width
        from scipy.stats import binomtest  # takes seconds to import

        wilson = binomtest(round(self.mean * self.samples), self.samples).proportion_ci(CONFIDENCE, method="wilson")
        return self.mean - float(wilson.low), float(wilson.high) - self.mean


def _in_quadrature(widths: Sequence[float]) -> float:
    """The root of the sum of squares of the known widths; NaN if none is known."""
    known = [width for width in widths if math.isfinite(width)]
    return math.hypot(*known) if known else math.nan


def t_half_width(std: float, num: int) -> float:
    """Half-width of the t interval of a mean of `num` values; NaN for one value."""
    return _t_quantile(num - 1) * std / math.sqrt(num) if num > 1 else math.nan


def _t_quantile(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def judge_published(ours: Measurement, published: PublishedValue, margin: float) -> Verdict:
    """Compare a result with a published value.

    *reproduced*: the interval holds the value, and half of its width is at most the margin. *better*, *worse*: the
    interval does not hold it. *cannot tell*: it holds it but is too wide, or there is none. margin: as for
    `absolute_margin`.
    """
    tag, value, mean = ours.tag, published.value, ours.mean
    if not math.isfinite(mean):
        return Verdict(MISSING, ours.missing)
    if tag == MINUTES:  # times of another machine cannot be compared
        return Verdict(OTHER_MACHINE)
    if tag == PARAMETERS:
        return _judge_parameters(mean, published)
    how, interval, scaled_value = describe_deviation(tag, mean, value), ours.scaled_interval, ours.to_scale(value)
    allowed = _scaled_margin(ours, margin, value)
    seeds = f"{ours.num_seeds} seeds" if ours.num_seeds > 1 else "one seed"
    if ours.is_partial:
        verdict = Verdict(PARTIAL, f"{format_percent(ours.share or 0.0)} of the published training, {how}")
    elif not math.isfinite(interval.half_width):
        verdict = Verdict(CANNOT_TELL, f"{how}, {seeds}")
    elif not interval.low <= scaled_value <= interval.high:
        is_larger = scaled_value < interval.low
        verdict = Verdict(BETTER if is_larger == larger_is_better(tag) else WORSE, f"{how}, {seeds}")
    elif interval.half_width <= allowed:
        verdict = Verdict(REPRODUCED, f"{how}, {seeds}")
    else:
        centre, std = ours.scaled

        def half_width(num: int) -> float:
            return _in_quadrature([t_half_width(std, num), *ours.test_widths[:1]])

        needed = _seeds_that_tell(ours.num_seeds, half_width, max(allowed, abs(centre - scaled_value)))
        verdict = Verdict(CANNOT_TELL, f"{how}, {needed}")
    return verdict._replace(text=", ".join(filter(None, [verdict.text, ours.missing])))


def _judge_parameters(mean: float, published: PublishedValue) -> Verdict:
    """Compare a number of parameters with a printed one such as "0.24 M": the same if it would be printed alike."""
    printed = re.match(r"\d+\.(\d+) M", published.printed)
    last_digit = 10.0 ** (6 - len(printed[1])) if printed else 1.0
    if abs(mean - published.value) <= last_digit / 2:
        return Verdict(REPRODUCED, f"{mean:,.0f} is {published.printed}")
    return Verdict(OTHER_NETWORK, describe_deviation(PARAMETERS, mean, published.value))


def judge_pair(ours: Measurement, other: Measurement, margin: float, published_ratio: float = math.nan) -> Verdict:
    """Compare two rows: *better* or *worse* if the interval of their difference excludes 0.

    *tie*: it holds 0, and half of its width is at most the margin; else *cannot tell*. published_ratio: the ratio of
    the published values; NaN if unknown.
    """
    for one in (ours, other):
        if not math.isfinite(one.mean):
            return Verdict(MISSING, f"{one.row} {one.missing}".rstrip())
    values = " against ".join(format_value(ours.tag, one.mean) for one in (ours, other))
    notes = [f"{values} of {other.row}"]
    if math.isfinite(published_ratio):
        notes.append(f"ratio {ours.mean / other.mean:.2f} (published {published_ratio:.2f})")
    notes += [f"{one.missing} of {one.row}" for one in (ours, other) if one.missing]
    if ours.is_partial or other.is_partial:
        shares = [format_percent(one.share) for one in (ours, other) if one.share is not None]
        trainings = f"{' and '.join(shares)} of the published training{'s' * (len(shares) > 1)}"
        return Verdict(PARTIAL, ", ".join([trainings, *notes]))
    gap, allowed = ours.scaled[0] - other.scaled[0], _scaled_margin(ours, margin, other.mean)
    error = _difference_error(ours, other)
    if abs(gap) > error.half_width:
        word, how = BETTER if (gap > 0) == larger_is_better(ours.tag) else WORSE, error.how
    elif error.half_width <= allowed:
        word, how = TIE, error.how
    elif math.isfinite(error.half_width):
        word, how = CANNOT_TELL, _seeds_that_tell(error.num_seeds, error.half_width_of, max(allowed, abs(gap)))
    else:
        word, how = CANNOT_TELL, "one seed"
    return Verdict(word, ", ".join(filter(None, [*notes, how])))


class _DifferenceError(NamedTuple):
    """The error of a scaled difference of two rows.

    num_seeds: the larger number of seeds. half_width: that of the interval. half_width_of: the same for a number of
    seeds of both rows.
    """

    num_seeds: int
    half_width: float
    how: str
    half_width_of: Callable[[int], float] = lambda _: math.nan


def _difference_error(ours: Measurement, other: Measurement) -> _DifferenceError:
    """The error of the difference: paired by seed if both have the same seeds, else Welch's, else over test samples."""
    if ours.tag in EXACT_TAGS:
        return _DifferenceError(1, 0.0, "")
    values, others, counts = ours.scaled_values, other.scaled_values, [ours.num_seeds, other.num_seeds]
    if len(values) > 1 and values.keys() == others.keys():
        _, std = mean_and_std([value - others[seed] for seed, value in values.items()])
        half = t_half_width(std, len(values))
        return _DifferenceError(counts[0], half, f"paired by {len(values)} seeds", lambda num: t_half_width(std, num))
    if min(counts) > 1:
        stds = [ours.scaled[1], other.scaled[1]]
        seeds = f"{counts[0]} seeds each" if counts[0] == counts[1] else f"{counts[0]} and {counts[1]} seeds"
        return _DifferenceError(max(counts), _welch(stds, counts), seeds, lambda num: _welch(stds, [num, num]))
    half = math.hypot(ours.scaled_interval.half_width, other.scaled_interval.half_width)
    return _DifferenceError(1, half, "one seed each, over test samples")


def _welch(stds: Sequence[float], counts: Sequence[int]) -> float:
    """Half-width of Welch's interval of a difference of two means; stds, counts: of the values of each."""
    squares = [std**2 / count for std, count in zip(stds, counts, strict=True)]
    parts = sum(square**2 / (count - 1) for square, count in zip(squares, counts, strict=True))
    return _t_quantile(sum(squares) ** 2 / parts) * math.sqrt(sum(squares)) if parts else 0.0


def _seeds_that_tell(num_seeds: int, half_width: Callable[[int], float], wanted: float) -> str:
    """Say how many seeds would make the interval narrow enough, if mean and spread stay as they are."""
    if num_seeds < 2:
        return "one seed"
    found = next((num for num in range(num_seeds + 1, MAX_SEEDS + 1) if half_width(num) <= wanted), None)
    return f"{num_seeds} seeds, {'about ' + str(found) if found else f'more than {MAX_SEEDS:,}'} would tell"


def larger_is_better(tag: str) -> bool:
    """Whether a larger value is better."""
    return higher_is_better(tag.removeprefix("final/test_").removeprefix("best/"))


def absolute_margin(tag: str, margin: float, reference: float) -> float:
    """The margin in the unit of the tag.

    For nats and bits, `margin` is absolute; for the rest, relative to `scale`.
    """
    return margin * scale(tag, reference)


def _scaled_margin(ours: Measurement, margin: float, reference: float) -> float:
    """The margin on the scale of intervals."""
    return math.log1p(margin) if ours.is_error else absolute_margin(ours.tag, margin, reference)


def logarithmic_unit(tag: str) -> str:
    """The unit of a logarithm of a likelihood, which has no natural zero; "" for other tags."""
    return "nats" if tag.endswith("_nats") else "bits" if tag.endswith("bits_per_dim") else ""


def scale(tag: str, reference: float) -> float:
    """Return the unit of deviations: an accuracy's error, an AUC's skill above chance, 1 nat or bit, else the value."""
    if logarithmic_unit(tag):
        return 1.0
    if tag.endswith("accuracy"):
        return 1.0 - reference
    return reference - CHANCE_AUC if tag.endswith("auc") else abs(reference)


def deviation(tag: str, ours: float, published: float) -> float:
    """The deviation in units of `scale`, positive if ours is worse, or larger if neither direction is better."""
    gap = published - ours if larger_is_better(tag) else ours - published
    unit = scale(tag, published)
    return gap / unit if unit else math.copysign(math.inf, gap) if gap else 0.0


def describe_deviation(tag: str, ours: float, published: float) -> str:
    """Say by how much ours deviates: ``30 % worse``, ``0.12 nats worse``, ``84 % of the skill missing``."""
    worse = deviation(tag, ours, published)
    if worse == 0:
        return "equal"
    if unit := logarithmic_unit(tag):
        size = f"{format_number(abs(worse))} {unit}"
    else:
        size = f"{100 * abs(worse):.{0 if abs(worse) >= 0.1 else 1}f} %"
    if tag.endswith("auc"):
        return f"{size} of the skill above chance {'missing' if worse > 0 else 'added'}"
    more, less = ("worse", "better") if tag.startswith(("final/test_", "best/")) else ("more", "less")
    return f"{size} {more if worse > 0 else less}"
