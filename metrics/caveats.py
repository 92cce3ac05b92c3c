"""What limits the use of an evaluation's values: sentences for its reader."""

from collections.abc import Mapping
from typing import Any

from metrics.evaluation import FEW, Evaluation
from metrics.extractors import Extractor
from metrics.extractors.weights import is_random
from metrics.features import Features
from metrics.measures import Measure
from metrics.protocols import Protocol
from metrics.reference_files import Reference
from metrics.report import number


def caveats_of_networks(weights: Mapping[str, str], precision: str | None) -> list[str]:
    """Return the limits that follow from the networks' weights (sha256 each) and precision."""
    caveats = []
    if any(map(is_random, weights.values())):
        caveats.append("RANDOM WEIGHTS: these numbers measure nothing and must not be reported")
    if precision not in (None, "fp32"):
        caveats.append(
            f"extractors computed in {precision}, references in fp32: see docs/performance.md"
        )
    return caveats


def precision_of(extractors: Mapping[str, Extractor]) -> str | None:
    """Name the precision of the networks, several if they differ; None: no network is known."""
    return ", ".join(sorted({one.precision for one in extractors.values()})) or None


def caveats_of_numbers(
    evaluation: Evaluation,
    protocol: Protocol,
    features: Features,
    real_n: Mapping[str, int | None],
) -> list[str]:
    """Return the limits of the values that are defined, most of them from the numbers of images.

    ``real_n``: statistics -> number of real images, None where it is not known.
    """
    details, caveats = evaluation.details, []
    defined = [
        one for one in protocol.measures if evaluation.values.get(one.columns[0]) is not None
    ]
    if "fd_floor" in details:
        caveats.append(_floor_caveat(details))
    if evaluation.values.get("is_std") is not None:
        caveats.append("is_std is the spread over the parts of the Inception score, not an error")
    if any(error is not None for error in evaluation.errors.values()):
        caveats.append(
            f"standard errors by leaving out each of {details['groups']} groups of seeds"
        )
    trends = dict.fromkeys(one.rule.trend for one in defined if one.rule.trend)
    if evaluation.n < FEW and trends:
        caveats.append(
            f"{' and '.join(trends)} with N: compare these only with {evaluation.n} images"
        )
    for measure in defined:
        if measure.rule.needs_covariance:
            caveats += _rank_caveats(measure, features, real_n.get(measure.statistics))
    if evaluation.values.get("precision") is not None and protocol.note:
        caveats.append(protocol.note)
    return caveats


def numbers_of_real(
    protocol: Protocol, reference: Reference | None, real: Features | None
) -> dict[str, int | None]:
    """Return the number of real images behind each of the statistics that a protocol uses."""
    known = {} if reference is None else reference.statistics
    alone = real.n if reference is None and real is not None else None
    return {name: known[name].n if name in known else alone for name in protocol.statistics()}


def _floor_caveat(details: Mapping[str, Any]) -> str:
    drawn = "equally often from each class" if details["fd_floor_balanced"] else "at random"
    floor = number((details["fd_floor"], details["fd_floor_std"]))
    return f"FD floor {floor}: mean and spread of what as many real images get, drawn {drawn}"


def _rank_caveats(measure: Measure, features: Features, real_n: int | None) -> list[str]:
    """Warn of fewer images than dimensions."""
    dim = features.output(measure.extractor, measure.output).shape[1]
    return [
        f"{measure.columns[0]}: the covariance of {n} {what} in {dim} dimensions is "
        "rank-deficient, FD is far above its value at large N"
        for n, what in ((features.n, "images"), (real_n, "real images"))
        if n is not None and n <= dim
    ]
