"""ERK-Guid inside a scheduler of diffusers: what all of its schedulers share.

Weights and `auto`: the parent class computes its step unchanged. The guided prediction that the
pipeline passes to `step` is also recorded as an evaluation of the ODE in sigma: x = sample / alpha
and the drift (x - D) / sigma, at sigma = noise / alpha. At the end of a step the solver of the same
name receives these evaluations and returns the step in sigma (Table 9, docs/theory.md), and the
difference that the correction makes to it is added to the parent's result.

A card: its solver takes the steps, one evaluation per call (`Walk`), on the card's noise levels.
"""

import copy
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from erk.calibration.card import content_of, open_card
from erk.integrations.sampler import levels_of, settings_for
from erk.integrations.walk import Walk, evaluations
from erk.method.arguments import check_names, require
from erk.method.corrections import auto
from erk.method.fields import check_needs, field
from erk.method.guidance import erk_guid, memoryless, unguided
from erk.method.point import Guidance, Point, Solver
from erk.method.settings import Settings
from erk.method.values import number

LEVELS = (
    "algorithm_type", "euler_at_final", "final_sigmas_type", "flow_shift", "lower_order_final",
    "max_shift", "base_shift", "shift", "shift_terminal", "solver_order", "solver_type",
    "timestep_spacing", "use_beta_sigmas", "use_dynamic_shifting", "use_exponential_sigmas",
    "use_karras_sigmas", "use_lu_lambdas",
)  # fmt: skip
"""Arguments of the parents that choose steps and noise levels, which a card brings."""


def extend(method: Any, parents: Any) -> Any:
    """Give an override the parameters of the parent's method, then its keyword-only ones.

    Pipelines look at the names of parameters to see what a scheduler supports.
    """
    theirs, ours = inspect.signature(parents), inspect.signature(method).parameters.values()
    more = [one for one in ours if one.kind is one.KEYWORD_ONLY]
    method.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *more])
    method.__name__, method.__doc__ = parents.__name__, method.__doc__ or parents.__doc__
    return method


def _init(
    self: Any,
    *args: Any,
    w_stiff: float = 0.0,
    w_con: float = 0.5,
    erk: str | None = None,
    card: Any = None,
    guidance: float = 1.0,
    **kwargs: Any,
) -> None:
    self._parent.__init__(self, *args, **kwargs)
    if self.config.card is not None:  # the content, so that a saved config needs no other file
        self.register_to_config(card=content_of(open_card(self.config.card)))
    self._check()
    self._forget()


def extends(parent: type, **methods: Any) -> Callable[[type], type]:
    """Give a scheduler the parameters of `parent`, with those of ERK-Guid in __init__.

    `methods` replace those of `parent`.
    """

    def decorate(kind: type) -> type:
        kind._parent = parent  # type: ignore[attr-defined]
        init = extend(_copy(_init), parent.__init__)  # type: ignore[misc]
        kind.__init__ = register_to_config(init)  # type: ignore[misc]
        for name, theirs in vars(parent).items():
            ours, theirs = getattr(kind, name), methods.get(name, theirs)
            if inspect.isfunction(theirs) and ours is not theirs and not name.startswith("_"):
                setattr(kind, name, extend(vars(kind).get(name) or _copy(ours), theirs))
        return kind

    return decorate


def _copy(method: Any) -> Any:
    """Return a function that calls a method of the common part, which the schedulers share."""
    return functools.wraps(method)(lambda *args, **kwargs: method(*args, **kwargs))


class Guided(SchedulerMixin):
    """ERK-Guid for a scheduler. Without weights, `auto` and card every step is the parent's."""

    SOLVERS: tuple[str, ...] = ()
    """The solvers of cards that this scheduler runs."""
    OUTPUT: Any = None  # the parent's
    _parent: Any
    _chosen: Settings | None = None  # until the parent is initialized
    _model: Any = None  # the denoiser that `check_card` saw

    def _forget(self) -> None:
        self._points: list[Point] = []  # evaluations of the current step
        self._memory: Any = None  # the solver's
        self._kept: Any = None  # the guidance's
        self._guidance: Guidance | None = None
        self._walk: Walk | None = None
        self._taken: list[tuple[Solver, Tensor, Tensor]] = []  # steps: solver, sigma, sigma_next

    def _check(self) -> None:
        """Raise ValueError for invalid arguments, and for a parent's settings without ERK-Guid."""
        c, weights = self.config, {}
        for name in ("w_stiff", "w_con"):
            value = number(name, c[name], least=0)
            weights[name] = None if value == field(name).default else value
        self._chosen = settings_for(
            type(self).__name__, self.SOLVERS, c.card, c.erk, **weights, guidance=c.guidance
        )

    @property
    def _settings(self) -> Settings:
        assert self._chosen is not None
        return self._chosen

    @property
    def _acts(self) -> bool:
        return self.config.w_stiff > 0 or self.config.erk is not None or self._has_card

    @property
    def _has_card(self) -> bool:
        return self.config.card is not None

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Create a scheduler from a config, as the parent class does.

        `w_stiff`, `erk` or `card` replaces that of the three that the config has. Raises ValueError
        for arguments beside `card` that contradict it and for `w_con` without `w_stiff`, TypeError
        for a misspelt argument, which the parent ignores.
        """
        known = inspect.signature(cls).parameters
        for name in {*kwargs} - {*known}:  # others are diffusers' own
            if difflib.get_close_matches(name, known, n=1):
                check_names([name], known, f"{cls.__name__}.from_config")
        has_weight = isinstance(config, Mapping) and config.get("w_stiff")
        if not has_weight:
            check_needs({*kwargs} & {"w_stiff", "w_con", "erk", "card"})
        if {*kwargs} & {"w_stiff", "erk", "card"}:
            kwargs = {"w_stiff": 0.0, "erk": None, "card": None} | kwargs
            if kwargs["w_stiff"] == 0:
                kwargs.setdefault("w_con", field("w_con").default)
        if kwargs.get("card") is not None:
            for name in LEVELS:
                if name in kwargs:
                    raise ValueError(
                        f"the card sets the solver and the noise levels, which contradicts {name}: "
                        f"leave {name} out, or the card."
                    )
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def check_card(self, model: Any, guide_model: Any = None, guidance: float = 1.0) -> None:
        """Check the card against the denoisers of the pipeline, which a scheduler does not see.

        The card's noise levels are then limited and rounded as the denoiser's. Raises ValueError
        for other networks or another guidance than the card's; does nothing without a card.
        """
        if self._has_card:
            card = open_card(self.config.card)
            card.check(model, guide_model)
            card.check_given({"guidance": guidance})
            self._model = model

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        steps = args[0] if args else kwargs.get("num_inference_steps")
        if steps is not None:
            kwargs["num_inference_steps"] = number("num_inference_steps", steps, int, least=1)
            if args:
                args = (kwargs.pop("num_inference_steps"), *args[1:])
        begun = self._chosen is not None
        if begun:
            self._check()
            self._forget()
        if not (begun and self._has_card):
            super().set_timesteps(*args, **kwargs)
            return
        given = inspect.signature(type(self).set_timesteps).bind(self, *args, **kwargs).arguments
        for name in ("timesteps", "sigmas", "num_train_timesteps"):
            if given.get(name) is not None:
                raise ValueError(
                    f"the card sets the noise levels: leave {name} out of set_timesteps, or the "
                    "card out of the scheduler."
                )
        card = open_card(self.config.card)
        card.check_given({"steps": given.get("num_inference_steps")})
        if self._model is None and (card.networks["network"] or card.networks.get("guide")):
            raise ValueError(
                "the card is for networks from files, which a scheduler does not see: sample "
                "with EDM2Pipeline, or call check_card(model, guide_model, guidance) first."
            )
        self._set_levels(self._card_levels(), given.get("device"))

    def _card_levels(self) -> Tensor:
        if self._settings.afs:
            raise ValueError(
                "the card skips the first evaluation (afs), which a pipeline does not: calibrate "
                "with afs=False (--no-afs), or sample with erk.sample(card=...)."
            )
        levels = levels_of(self._settings, self._stand_in() if self._model is None else self._model)
        if self._settings.erk is not None:
            self._settings.correction(levels)  # checks the levels
        return levels

    def _set_levels(self, levels: Tensor, device: Any) -> None:
        """Set sigmas and timesteps to the evaluations of the card's solver on levels [N + 1]."""
        self._nodes = levels
        calls = evaluations(self._settings.solver_for(levels, self._model), levels)
        super().set_timesteps(len(calls), device)
        self.num_inference_steps = len(levels) - 1
        self._write_levels(torch.cat([calls, levels[-1:]]), device)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if self._acts and self.step_index is None:
            self._init_step_index(timestep)
        if not self._acts or self._is_parents(self.step_index):
            return super().step(model_output, timestep, sample, *args, **kwargs)
        index = self.step_index
        for name, value in (("model_output", model_output), ("sample", sample)):
            require(isinstance(value, Tensor), name, "a tensor [B, ...]", value)
        wide = torch.promote_types(sample.dtype, torch.float32)  # for differences
        point = self._point(model_output.to(wide), sample.to(wide), index)
        if self._guidance is None:
            self._begin(index)
        if self._walk is not None:
            bound = inspect.signature(type(self).step).bind(
                self, model_output, timestep, sample, *args, **kwargs
            )
            return self._walked(point, sample.dtype, bound.arguments)
        result = super().step(model_output, timestep, sample, *args, **kwargs)
        self._points.append(point)
        solver = self._finished(index)
        if solver is not None:
            moved = result[0].to(wide) + self._correction(solver, *self._end(index))
            result = _replaced(result, moved.to(result[0].dtype))
        return result

    def _begin(self, index: int) -> None:
        """Choose the correction of a run whose first call is at `index`."""
        settings = self._settings
        if self._has_card:
            if index:
                raise ValueError(
                    "the card's steps begin at its first noise level: start there (strength=1), "
                    "or leave the card out."
                )
            self._start_walk(self._nodes)
        elif settings.erk is not None:
            self._guidance = self._rehearse(index)
        else:
            self._guidance = memoryless(
                functools.partial(erk_guid, w_stiff=settings.w_stiff, w_con=settings.w_con)
            )

    def _start_walk(self, levels: Tensor) -> None:
        solver = self._settings.solver_for(levels, self._model)
        self._guidance = self._settings.correction(levels, self._model) or unguided
        self._walk = Walk(solver, levels, self._guidance)

    def _walked(self, point: Point, dtype: torch.dtype, given: dict[str, Any]) -> Any:
        """Return the parent's kind of answer, with the state that the card's solver asks for."""
        assert self._walk is not None
        if given.get("s_churn"):
            raise ValueError("ERK-Guid needs a deterministic step: leave s_churn out.")
        x, sigma = self._walk(point)
        self._step_index += 1
        values = {"prev_sample": (self._scale(sigma) * x).to(dtype)}
        if "pred_original_sample" in self.OUTPUT.__dataclass_fields__:
            values["pred_original_sample"] = (point.x - point.sigma * point.f).to(dtype)
        if given.get("return_dict", True):
            return self.OUTPUT(**values)
        return tuple(values.values())

    def _rehearse(self, index: int) -> Guidance:
        """Compute `auto` for the steps from a call on.

        A copy takes them on zeros, because the parent chooses the order of a step as it goes.
        """
        plain = copy.deepcopy(self)
        plain._guidance, x = unguided, torch.zeros(1, 1, 1, 1)
        for t in self.timesteps[index:]:
            x = plain.step(x, t, x, return_dict=False)[0]
        if not plain._taken:  # one step, to 0
            return unguided
        solvers = {sigma.item(): solver for solver, sigma, _ in plain._taken}
        levels = [sigma for _, sigma, _ in plain._taken] + [plain._taken[-1][2]]

        def solver(drift: Any, x: Tensor, sigma: Tensor, *more: Any) -> Any:
            return solvers[sigma.item()](drift, x, sigma, *more)

        correction = auto(solver, torch.stack(levels).double())
        correction.warn_if_idle(f"of {type(self).__name__}", stacklevel=5)
        return correction

    def _correction(self, solver: Solver, alpha: Tensor, sigma_next: Tensor) -> Tensor:
        """Compute the correction in the parent's scale; 0 below the stiffness threshold."""
        known, start = iter(self._points), self._points[0]
        if sigma_next == 0:  # Euler's last step, never corrected
            return torch.zeros_like(start.x)
        step = solver(lambda x, sigma: next(known), start.x, start.sigma, sigma_next, self._memory)
        step = step._replace(sigma_next=sigma_next, index=len(self._taken))
        self._points, self._memory = [], step.memory or (start,)
        self._taken.append((solver, start.sigma, sigma_next))
        assert self._guidance is not None
        x, self._kept = self._guidance(step, self._kept)
        return alpha * (x - step.x)

    # What a scheduler says of itself.

    def _point(self, output: Tensor, sample: Tensor, index: int) -> Point:
        """Return the pipeline's evaluation at a level, in sigma."""
        raise NotImplementedError

    def _finished(self, index: int) -> Solver | None:
        """Return the solver of the step that ends with this call; None within a step."""
        raise NotImplementedError

    def _end(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) of the parent's result, each []."""
        raise NotImplementedError

    def _scale(self, sigma: Tensor) -> Tensor:
        """Return alpha [] at a level: sample = alpha x."""
        raise NotImplementedError

    def _write_levels(self, levels: Tensor, device: Any) -> None:
        """Set the parent's sigmas and timesteps to levels [calls + 1]."""
        raise NotImplementedError

    def _stand_in(self) -> Any:
        """Return what limits the noise levels of a card, if the network is not known."""
        return None

    def _is_parents(self, index: int) -> bool:
        """Return whether this call is left to the parent."""
        return False


def _replaced(result: Any, sample: Tensor) -> Any:
    """Replace prev_sample in the parent's result, a tuple or an output object."""
    if isinstance(result, tuple):
        return (sample, *result[1:])
    result.prev_sample = sample
    return result
