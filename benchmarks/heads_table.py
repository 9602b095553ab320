"""The tables of classifiers and taggers with and without a funnel: the mean and the range of the seeds."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
DENSE = "dense"


def heads(name: str, unit: str) -> str:
    """What models got right, how much more or less than the dense model of the same seed, and the conditions.

    Args:
        name: the result file.
        unit: what a document is.
    """
    models = _by_model(name)
    rows = []
    for model, found in models.items():
        loss, accuracy, macro_f1 = (_measures(found, each) for each in ("loss", "accuracy", "macro_f1"))
        more = [each - other for each, other in zip(accuracy, _measures(models[DENSE], "accuracy"), strict=True)]
        difference = "–" if model == DENSE else _percent(more, "+z.1f")
        rows.append((model, _spread(loss, ".3f"), _percent(accuracy), difference, _percent(macro_f1)))
    words = [each["most_frequent"] for each in models[DENSE].values() if "most_frequent" in each]
    if words:
        rows.append(("each word's most frequent tag", "–", _percent(words), "–", "–"))
    headers = ("", "loss", "accuracy, %", "more than dense", "macro-F1, %")
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return f"{table}\n\n{_conditions(models, unit)}"


@cache
def _by_model(name: str) -> dict[str, dict[str, Any]]:
    """The outcomes by model and seed."""
    models: dict[str, dict[str, Any]] = {}
    for key, found in json.loads((RESULTS / f"{name}.json").read_text()).items():
        model, _, seed = key.rpartition(", seed ")
        models.setdefault(model, {})[seed] = found
    return models


def _measures(found: Mapping[str, Any], measure: str) -> list[float]:
    """A measure of all seeds."""
    return [each["measured"]["measures"][measure]["value"] for _, each in sorted(found.items())]


def _percent(values: Sequence[float], form: str = ".1f") -> str:
    """Shares as percentages: the mean with the least and the largest."""
    return _spread([100 * value for value in values], form)


def _spread(values: Sequence[float], form: str) -> str:
    """The mean with the least and the largest."""
    return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _conditions(models: dict[str, dict[str, Any]], unit: str) -> str:
    """What all runs have in common; an error if they do not."""
    outcomes = [each for found in models.values() for each in found.values()]
    (seeds,) = {len(found) for found in models.values()}
    (facts,) = {
        (
            training["steps"],
            training["batch_size"],
            training["learning_rate"],
            training["part"],
            each["adapt"]["length"],
            each["adapt"]["dtype"],
            each["measured"]["documents"],
        )
        for each in outcomes
        for training in [each["adapt"]["training"]]
    }
    steps, batch_size, rate, part, length, dtype, documents = facts
    conditions = ", ".join(f"{name} {value}" for name, value in outcomes[0]["conditions"].items())
    return (
        f"Mean of {seeds} seeds, with the least and the largest. {steps} steps of {batch_size} {unit}, of at most "
        f"{length} tokens; trained: {part}, learning rate {rate or 'as by default'}, {dtype}. Measured on "
        f"{documents:,} other {unit}.\n\n({conditions})"
    )
