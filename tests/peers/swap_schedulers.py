"""A pytest plugin: diffusers' scheduler tests run on our schedulers, with PEERS_KIND's w_stiff.

With w_stiff above 0 the tests that compare sums of samples with fixed numbers are left out: those
are numbers of the plain solvers. The subtests of configurations that ERK-Guid refuses (docs of the
integrations; tests/integrations/test_schedulers.py) run at w_stiff 0: `sde-...` algorithms, and
order 3 of singlestep solvers.
"""

import functools
import inspect
import os

from erk.integrations import diffusers as ours

KIND = os.environ["PEERS_KIND"]  # parent, or a value of w_stiff
HELPERS = ("check_over_configs", "full_loop", "full_loop_custom_timesteps")


def guided(kind, w_stiff):
    """Set the default of w_stiff, which the tests do not give."""
    init = kind.__init__.__wrapped__
    signature = inspect.signature(init)
    parameters = [
        one.replace(default=w_stiff) if one.name == "w_stiff" else one
        for one in signature.parameters.values()
    ]
    init.__signature__ = signature.replace(parameters=parameters)
    return kind


def refused(kind, config):
    """Whether ERK-Guid refuses this configuration of a scheduler with w_stiff above 0."""
    stochastic = config.get("algorithm_type", "").startswith("sde-")
    return stochastic or ("Singlestep" in kind.__name__ and config.get("solver_order") == 3)


def without_refusals(method):
    """Run a helper of the tests with w_stiff 0 where the configuration that it gets is refused."""

    @functools.wraps(method)
    def run(test, *args, **config):
        if refused(test.scheduler_classes[0], config):
            config["w_stiff"] = 0.0
        return method(test, *args, **config)

    return run


def pytest_collection_modifyitems(config, items):
    if KIND == "parent":
        return
    w_stiff = float(KIND)
    kinds = [getattr(ours, name) for name in ours.__all__ if name.endswith("Scheduler")]
    swap = {kind._parent: guided(kind, w_stiff) for kind in kinds}
    for module in {item.module for item in items}:
        for name, value in list(vars(module).items()):
            if inspect.isclass(value) and value in swap:
                setattr(module, name, swap[value])
            classes = getattr(value, "scheduler_classes", ())
            if inspect.isclass(value) and any(one in swap for one in classes):
                value.scheduler_classes = tuple(swap.get(one, one) for one in classes)
                for helper in HELPERS if w_stiff > 0 else ():
                    if hasattr(value, helper):
                        setattr(value, helper, without_refusals(getattr(value, helper)))
    if w_stiff > 0:
        fixed = [item for item in items if "result_mean" in inspect.getsource(item.function)]
        config.hook.pytest_deselected(items=fixed)
        items[:] = [item for item in items if item not in fixed]
