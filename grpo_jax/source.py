"""Experiments by name, and what a run directory or a model's name stands for."""

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grpo_jax.run_directory import read_config

if TYPE_CHECKING:
    from grpo_jax.models.network import Network


@dataclasses.dataclass(frozen=True)
class Source:
    """A network with the parameters of a run's newest checkpoint, or of a model.

    Attributes:
        network: the model.
        trained: its parameters, as far as they are trained.
        params: all of them, as the policy takes them.
        step: of the checkpoint; 0 for a model.
        module: the experiment whose questions are meant, if any.
        config: that experiment's values: the run's, or its defaults.
        objective: of a run, what its objective was made of.
        rewards: the weight of each reward function of the run; empty where there is none.
    """

    network: "Network"
    trained: Any
    params: Any
    step: int
    module: ModuleType | None
    config: Any
    rewards: dict[str, float] = dataclasses.field(default_factory=dict)
    objective: dict[str, str] = dataclasses.field(default_factory=dict)


def load_source(source: str, experiment: str = "") -> Source:
    """Loads a run directory's newest checkpoint, or a model by directory or name.

    Args:
        source: the run directory or the model.
        experiment: whose questions are meant; by default those that the run was trained for.

    Raises:
        ValueError: there is neither, or the run holds no finished checkpoint.
    """
    from grpo_jax.compilation_cache import keep_compiled

    keep_compiled()
    module = experiment_module(experiment) if experiment else None
    try:
        saved = read_config(Path(source))
    except ValueError:
        from grpo_jax.models.network import pretrained
        from grpo_jax.models.settings import DEFAULTS, Settings

        settings = Settings.of(module.Config()) if module else DEFAULTS
        settings = dataclasses.replace(DEFAULTS, longest=settings.longest)
        network = pretrained(source, settings)
        params = network.load()
        return Source(network, params, params, 0, module, module.Config() if module else None)

    from grpo_jax.checkpoints import Checkpoints
    from grpo_jax.models.network import pretrained
    from grpo_jax.models.settings import Settings

    checkpoints_directory = Path(source) / "checkpoints"
    if not checkpoints_directory.is_dir():
        raise ValueError(f"{source} is a run, but holds no finished checkpoint")
    trained = experiment_module(saved["experiment"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"].items()}
    try:
        config = trained.Config(**values | {"resume": False})
    except TypeError as error:
        raise ValueError(
            f"{source} was made by another version of {saved['experiment']}: {error}"
        ) from None
    own = getattr(trained, "network", None)
    network = (
        own(config)
        if own
        else pretrained(config.model, Settings.of(config, date=saved["started"][:10]))
    )
    checkpoints = Checkpoints(checkpoints_directory)
    try:
        step, params = checkpoints.restore_params(network.shapes)
    finally:
        checkpoints.close()
    found = network, params, network.whole(params), step
    if module is not None:
        return Source(*found, module, module.Config())
    return Source(*found, trained, config, saved["rewards"], saved.get("objective", {}))


def experiment_module(name: str) -> ModuleType:
    """The module of an experiment: a name in experiments/, or the path of a file.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name.endswith(".py"):
        path = Path(name)
        # Under a name of its own: it must not take the place of a module that is called the same.
        private = f"grpo_jax_experiment_{path.stem}"
        spec = importlib.util.spec_from_file_location(private, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise ValueError(f"there is no experiment file {name}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[private] = module
        spec.loader.exec_module(module)
        return module
    import experiments

    names = sorted(module.name for module in pkgutil.iter_modules(experiments.__path__))
    short = name.removeprefix("experiments.")
    if short not in names:
        near = difflib.get_close_matches(short, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no experiment {name!r}; {hint}There are: {', '.join(names)}")
    return importlib.import_module(f"experiments.{short}")
