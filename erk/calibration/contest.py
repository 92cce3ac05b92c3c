"""The contest of samplers: fitted on some seeds, compared on others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erk.calibration.candidates import solver_name
from erk.calibration.end_to_end import fit_end_to_end, refine_levels
from erk.calibration.fit import ReferenceBatch, fit, walk_of
from erk.calibration.levels import GAMMAS, euler_costs, shortest_path
from erk.calibration.parts import Parts
from erk.calibration.problem import Problem
from erk.calibration.search import search
from erk.calibration.solver_error import (
    Reference,
    errors,
    fine_levels,
    reference_rows,
)
from erk.method.corrections import Correction, auto
from erk.method.drift import NonFiniteError
from erk.method.settings import Settings

SCREENED = 8  # seeds of the first comparison of all published samplers
FINALISTS = 2  # samplers whose levels are refined; as many solvers at most end to end
KINDS = ("none", "auto", "stepwise")  # corrections in the first comparison


class Samples(NamedTuple):
    """A batch with its converged solutions."""

    noise: Tensor  # unit variance, [B, ...]
    labels: Tensor | None
    ends: Sequence[Tensor]  # at sigma_min and at 0, two of [B, ...]
    reference: Reference | None = None  # the path, for seeds to fit on

    def first(self, count: int) -> "Samples":
        """Return the first `count` samples, without the path."""
        labels = None if self.labels is None else self.labels[:count]
        return Samples(self.noise[:count], labels, [end[:count] for end in self.ends])


class Contender(NamedTuple):
    """A sampler with its errors on the seeds that the choice is based on."""

    settings: Settings
    levels: str  # published, dynamic or refined
    correction: str  # none, auto, weights, stepwise or end-to-end
    errors: Tensor  # [n] float64
    candidate: int  # number of the published sampler that it began as

    @property
    def error(self) -> float:
        """The mean error."""
        return self.errors.mean().item()


class Plan(NamedTuple):
    """What a calibration compares."""

    nfe: int
    seeds: int  # of each of three sets
    candidates: list[Settings]
    corrections: tuple[str, ...]
    directions: tuple[str, ...]
    evaluations: int  # on a reference path
    free_levels: bool


def draw_samples(
    problem: Problem, seeds: Sequence[int], role: str, plan: Plan, parts: Parts, paths: bool = False
) -> list[Samples]:
    """Solve the reference paths of the seeds, batch after batch; with `paths` keep all of them."""
    positive = problem.sigmas[problem.sigmas > 0].tolist()
    ends = positive[0], positive[-1]
    batches = []
    for number, group in enumerate(problem.batches(seeds)):
        noise, labels = problem.draw(group)
        noise = noise.to(problem.settings.dtype)

        def rows(noise: Tensor = noise, labels: Tensor | None = labels) -> Tensor:
            drift = problem.exact_drift(labels)
            path = reference_rows(drift, noise, ends, plan.evaluations)
            return path if paths else path[[-3, -1]]

        stored = parts.keep_rows(f"{role} {number}", rows)
        n = len(stored)
        last = [stored[n - 3 if paths else 0], stored[n - 1]]
        levels = fine_levels(ends, plan.evaluations)
        batches.append(Samples(noise, labels, last, Reference(levels, stored) if paths else None))
    return batches


@dataclass
class Contest:
    """Samplers are fitted on `fitted` and compared on `compared`."""

    problem: Problem
    plan: Plan
    parts: Parts
    fitted: list[Samples]
    compared: list[Samples]

    def run(self) -> list[Contender]:
        """Return all contenders; the first is the best published sampler without correction."""
        contenders = self.screened()
        if "weights" in self.plan.corrections:
            contenders += self.weighted(contenders[0])
        if self.plan.free_levels:
            contenders += self.with_free_levels(contenders)
        if "end-to-end" in self.plan.corrections:
            contenders += self.end_to_end(contenders)
        return contenders

    def errors_of(self, settings: Settings, count: int | None = None) -> Tensor:
        """Measure the errors of the first seeds that the choice is based on, [count] float64."""
        samples = first(self.compared, count)
        return measure(self.problem._replace(settings=settings), samples)

    def screened(self) -> list[Contender]:
        """Compare all published samplers on a few seeds, the best of each kind on all."""
        kinds = [kind for kind in KINDS if kind == "none" or kind in self._kinds]
        table = torch.stack([
            self.parts.keep(f"screened {i}", partial(self._screen, one, kinds))
            for i, one in enumerate(self.plan.candidates)
        ])  # fmt: skip
        contenders = []
        for k, kind in enumerate(kinds):
            order = table[:, k].argsort(stable=True).tolist()
            for i in self._different([i for i in order if table[i, k].isfinite()]):
                contenders.append(self._contender(i, kind))
        plain = [one for one in contenders if one.correction == "none"]
        best = min(plain, key=lambda one: one.error)
        return [best, *(one for one in contenders if one is not best)]

    def _screen(self, settings: Settings, kinds: Sequence[str]) -> Tensor:
        """Measure a published sampler with the corrections `kinds` on few seeds, [kinds]."""
        values = []
        for kind in kinds:
            try:
                sampler = self.corrected(settings, kind, SCREENED)
                value = torch.inf
                if sampler is not None:
                    value = self.errors_of(sampler, SCREENED).mean().item()
            except NonFiniteError:
                value = torch.inf
            values.append(value)
        return torch.tensor(values, dtype=torch.float64).nan_to_num(nan=torch.inf, posinf=torch.inf)

    @property
    def _kinds(self) -> set[str]:
        more = {"stepwise"} if "end-to-end" in self.plan.corrections else set()
        return {*self.plan.corrections} | more

    def _different(self, order: Sequence[int]) -> list[int]:
        """Return the best candidates, of different schedules."""
        schedules: dict[object, int] = {}
        for i in order:
            schedules.setdefault(self.plan.candidates[i].levels, i)
        return [*schedules.values()][:FINALISTS]

    def _contender(self, i: int, kind: str) -> Contender:
        settings = self.corrected(self.plan.candidates[i], kind)
        assert settings is not None
        name = f"errors {i} {kind}"
        values = self.parts.keep(name, lambda: self.errors_of(settings))
        return Contender(settings, "published", kind, values, i)

    def corrected(self, settings: Settings, kind: str, count: int | None = None) -> Settings | None:
        """Return a sampler with a correction, fitted on the first seeds; None: it has none."""
        if kind == "none":
            return settings
        problem = self.problem._replace(settings=settings)
        if kind == "auto":
            sigmas = problem.sigmas
            correction = auto(settings.solver_for(sigmas, problem.model), sigmas)
            return replace(settings, erk=correction) if correction.acts else None
        batches = batches_at(problem, first(self.fitted, count))
        return replace(settings, erk=fit(problem, batches, self.plan.directions).correction)

    def weighted(self, plain: Contender) -> list[Contender]:
        """Choose w_stiff and w_con for the best published sampler."""
        seeds = [*range(sum(len(one.noise) for one in self.fitted))]
        problem = self.problem._replace(settings=plain.settings, draw=self._draw_fitted)
        ends = torch.cat([exact_of(problem, one) for one in self.fitted])
        choice = search(problem, seeds, ends, self.parts).choice
        if not choice.w_stiff:
            return []
        settings = replace(plain.settings, w_stiff=choice.w_stiff, w_con=choice.w_con)
        values = self.errors_of(settings)
        return [Contender(settings, "published", "weights", values, plain.candidate)]

    def _draw_fitted(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        noise = torch.cat([one.noise for one in self.fitted])[[*rows]]
        if self.fitted[0].labels is None:
            return noise, None
        return noise, torch.cat([one.labels for one in self.fitted])[[*rows]]  # type: ignore[misc]

    def with_free_levels(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Return samplers with other noise levels, each with the correction that suits them."""
        kind = min(contenders, key=lambda one: one.error).correction
        kind = kind if kind in KINDS else "none"
        starts = sorted((c for c in contenders if c.correction == kind), key=lambda c: c.error)
        begin = [(c, c.settings.sigmas(self.problem.model).tolist()) for c in starts[:FINALISTS]]
        chosen = []
        for number, levels in enumerate(self._dynamic(starts[0])):
            chosen.append(self._moved(starts[0], levels, kind, "dynamic", number))
            begin.append((starts[0], [*levels]))
        for number, (one, sigmas) in enumerate(begin):
            chosen.append(self._refined(one, sigmas, kind, number))
        return [one for one in chosen if one is not None]

    def _dynamic(self, one: Contender) -> list[tuple[float, ...]]:
        """Return the noise levels of dynamic programming for a sampler's number of steps."""
        sigmas = one.settings.sigmas(self.problem.model)
        steps, zero = int((sigmas > 0).sum()) - 1, [0.0] * (sigmas[-1] == 0)
        references = [batch.reference for batch in self.fitted if batch.reference is not None]
        nodes, costs = euler_costs(references)
        if steps >= len(nodes):
            return []
        paths = [shortest_path(costs, steps, gamma) for gamma in GAMMAS]
        ends = sigmas[sigmas > 0][[0, -1]].tolist()
        return [
            (ends[0], *nodes[[*path[1:-1]]].tolist(), ends[1], *zero)
            for path in dict.fromkeys(map(tuple, paths))
        ]  # fmt: skip

    def _refined(
        self, one: Contender, sigmas: list[float], kind: str, number: int
    ) -> Contender | None:
        plain = one.settings

        def states(levels: tuple[float, ...]) -> Sequence[Tensor]:
            return self._final_states(at_levels(plain, levels), kind)

        exact = [samples.ends[0] for samples in self.fitted]
        levels = self.parts.keep(
            f"levels {number} {kind}",
            lambda: torch.tensor(refine_levels(states, exact, sigmas), dtype=torch.float64),
        )
        return self._moved(one, tuple(levels.tolist()), kind, "refined", number)

    def _final_states(self, settings: Settings, kind: str) -> Sequence[Tensor]:
        """Return the states at the last level above 0 of all samples to fit on."""
        problem = self.problem._replace(settings=settings)
        batches = batches_at(problem, self.fitted)
        if kind == "stepwise":
            return fit(problem, batches, self.plan.directions).states
        walk = walk_of(problem, ("embedded",))
        rows: Sequence[Sequence[float]] = [[0.0]] * (len(walk.levels) - 1)
        if kind == "auto":
            rows = auto(walk.solver, problem.sigmas).weights
        return [walk.follow(batch.labels, walk.start(batch.noise), rows) for batch in batches]

    def _moved(
        self, one: Contender, levels: tuple[float, ...], kind: str, name: str, number: int
    ) -> Contender | None:
        """Return a sampler at other levels, with its correction; None if it diverges."""
        try:
            settings = self.corrected(at_levels(one.settings, levels), kind)
            if settings is None:
                return None
            values = self.parts.keep(f"{name} {number} {kind}", lambda: self.errors_of(settings))
        except NonFiniteError:
            return None
        return Contender(settings, name, kind, values, one.candidate)

    def end_to_end(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Fit the best solvers with a stepwise correction against the final state."""
        best: dict[str, Contender] = {}
        for one in sorted(contenders, key=lambda c: c.error):
            if one.correction == "stepwise":
                best.setdefault(solver_name(one.settings), one)
        fitted = map(self._together, [*best.values()][:FINALISTS])
        return [one for one in fitted if one is not None]

    def _together(self, one: Contender) -> Contender | None:
        """Fit levels, if they are free, and coefficients end to end; None if they diverge."""
        free = self.plan.free_levels
        problem = self.problem._replace(settings=replace(one.settings, erk=None))
        name = f"end-to-end {one.candidate}"
        try:
            stored = self.parts.keep(name, partial(self._fit, problem, free))
            settings = self._unpacked(one.settings, stored, free)
            values = self.parts.keep(f"errors {name}", partial(self.errors_of, settings))
        except NonFiniteError:
            return None
        levels = "refined" if free else one.levels
        return Contender(settings, levels, "end-to-end", values, one.candidate)

    def _fit(self, problem: Problem, free: bool) -> Tensor:
        """Fit end to end; return the levels and the weights in one row."""
        batches = batches_at(problem, self.fitted)
        first_fit = fit(problem, batches, self.plan.directions)
        levels, correction = fit_end_to_end(problem, batches, first_fit, free)
        weights = torch.tensor(correction.weights, dtype=torch.float64)
        return torch.cat([torch.tensor(levels, dtype=torch.float64), weights.flatten()])

    def _unpacked(self, settings: Settings, stored: Tensor, free: bool) -> Settings:
        count = len(settings.sigmas(self.problem.model))
        if free:
            settings = at_levels(settings, tuple(stored[:count].tolist()))
        weights = stored[count:].reshape(-1, len(self.plan.directions)).tolist()
        sigmas = settings.sigmas(self.problem.model)
        levels = tuple(sigmas[sigmas > 0].tolist())
        correction = Correction(levels, self.plan.directions, tuple(map(tuple, weights)))
        return replace(settings, erk=correction)


def first(samples: Sequence[Samples], count: int | None) -> list[Samples]:
    """Return the first `count` samples of all batches; None: all."""
    if count is None:
        return [*samples]
    kept = []
    for batch in samples:
        if count > 0:
            part = batch.first(count)
            kept.append(part._replace(reference=batch.reference))
        count -= len(batch.noise)
    return kept


def measure(problem: Problem, samples: Sequence[Samples]) -> Tensor:
    """Measure each sample's distance to its converged solution, [n] float64."""
    parts = []
    for one in samples:
        exact = exact_of(problem, one).to(one.noise.device)
        parts.append(errors(problem.settings, problem.drift(one.labels), one.noise, exact))
    return torch.cat(parts).cpu()


def exact_of(problem: Problem, samples: Samples) -> Tensor:
    """Return the converged solutions at the last noise level of a problem's settings, [B, ...]."""
    return samples.ends[1 if problem.sigmas[-1] == 0 else 0]


class _Path(Sequence[Tensor]):
    """The reference solution at chosen noise levels, computed when it is looked at."""

    def __init__(self, reference: Reference, sigmas: Sequence[float], samples: int) -> None:
        self.reference, self.sigmas, self.samples = reference, sigmas, samples

    def __len__(self) -> int:
        return len(self.sigmas)

    def __getitem__(self, index: Any) -> Any:
        return self.reference.at(self.sigmas[index])[: self.samples]


def batches_at(problem: Problem, samples: Sequence[Samples]) -> list[ReferenceBatch]:
    """Return samples with their reference paths at the noise levels of a problem."""
    sigmas = problem.sigmas.tolist()
    return [
        ReferenceBatch(one.noise, one.labels, _Path(one.reference, sigmas, len(one.noise)))
        for one in samples
        if one.reference is not None
    ]


def at_levels(settings: Settings, levels: tuple[float, ...]) -> Settings:
    """Return settings without a correction at other noise levels."""
    return replace(
        settings, schedule=levels, steps=len(levels) - 1, rho=None, denoise_to_zero=False, erk=None
    )
