"""The rooms, from the imports themselves; and what importing costs."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parent.parent
STDLIB = sys.stdlib_module_names

# From low to high: a room imports those on the lines below its own (above it here), never others
# of its line. Files that stand outside the chain are held to the other rules.
CHAIN = (
    ("ops",),
    ("policy", "objectives"),
    ("sampling", "update", "anchors"),
    ("continuous_batching",),
    ("resampling",),
    ("algorithm",),
    ("training_loop",),
    ("runner",),
    ("experiments",),
)
LEVEL = {room: level for level, rooms in enumerate(CHAIN) for room in rooms}
# Modules that may be used where no JAX is wanted; `charts` and `report` only draw.
WITHOUT_JAX = (
    "config",
    "rewards",
    "tasks",
    "tokenizer",
    "run_directory",
    "launch",
    "cli",
    "source",
)
WITHOUT_JAX += ("report", "charts", "console", "metrics", "models.embedded")


def modules():
    """(dotted name, tree) of every module of ours."""
    for top in ("grpo_jax", "experiments"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(), str(path))


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(tree, *, at_module_level=False):
    """Dotted names that are imported; `from a import b` gives both a and a.b."""
    found = []
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if is_type_checking(node):
            continue
        if at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        pending += ast.iter_child_nodes(node)
    return found


def room(name):
    """`grpo_jax.ops.kl` -> ops; `experiments.toy` -> experiments; None for what is not ours."""
    top, _, rest = name.partition(".")
    if top == "experiments":
        return top
    return rest.split(".")[0] if top == "grpo_jax" else None


MODULES = list(modules())
NAMES = {name for name, _ in MODULES}


def ours(tree, **kwargs):
    return {name for name in imports(tree, **kwargs) if name in NAMES}


def outside(tree, **kwargs):
    tops = {name.split(".")[0] for name in imports(tree, **kwargs)}
    return tops - {"grpo_jax", "experiments"}


def test_the_rooms_are_all_there():
    rooms = {room(name) for name in NAMES}
    assert rooms >= {name for line in CHAIN for name in line}
    assert rooms >= {"rewards", "tasks", "models", "types", "config"}
    assert len(MODULES) > 30


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_run_downwards(name, tree):
    here = room(name)
    for imported in ours(tree):
        there = room(imported)
        if there == here or there == "" or here == "":  # the package itself only lists its rooms
            continue
        assert there != "experiments" or here == "source", f"{name} imports {imported}"
        if here in LEVEL and there in LEVEL:
            assert LEVEL[there] < LEVEL[here], f"{name} imports {imported}"
        if there in ("runner", "cli"):
            assert here in ("experiments",), f"{name} imports {imported}"
        if there == "algorithm":
            assert here == "training_loop", f"{name} imports {imported}"
        if here == "types":
            raise AssertionError(f"types imports {imported}")
        if here in ("rewards", "config"):
            raise AssertionError(f"{name} imports {imported}")
        if here == "tasks":
            assert there == "rewards", f"{name} imports {imported}"
        if here in LEVEL and LEVEL[here] <= LEVEL["algorithm"]:
            # From the algorithm down nothing knows of configs, models, files or consoles.
            assert there in LEVEL or there in (
                "types",
                "keys",
                "lengths",
                "lanes",
                "memory",
                "parts",
            ), f"{name} imports {imported}"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_what_each_room_asks_of_others_people(name, tree):
    here, others = room(name), outside(tree)
    if here == "ops":
        assert others <= {"jax", "chex"} | STDLIB, f"{name}: {others}"
        assert all(room(imported) == "ops" for imported in ours(tree)), name
    if here in ("rewards", "tasks"):
        # An extra may be imported where it is used.
        assert outside(tree, at_module_level=True) <= {"numpy"} | STDLIB, f"{name}: {others}"
        assert not others & {"jax", "jaxlib", "flax", "optax", "chex"}, f"{name}: {others}"
    if here not in ("models", "experiments"):  # an experiment may bring a network of its own
        assert "flax" not in others, name
    assert "flax.nnx" not in imports(tree, at_module_level=True), name
    heavy = {"transformers", "huggingface_hub", "torch", "tensorflow", "pandas", "datasets"}
    assert not outside(tree, at_module_level=True) & heavy, name
    assert "pickle" not in others, name


NETWORK = ("attention", "config", "context", "decoder", "experts", "latent", "layers", "rotary")
NETWORK += ("adapters", "heads", "lora", "stacking")
LOADERS = ("directory", "embedded", "families", "fields", "loading", "network", "saving", "tensors")
LOADERS += ("hub", "peft", "rotary_fields", "settings")


def test_a_loader_imports_its_model_and_never_the_reverse():
    for name, tree in MODULES:
        if name in {f"grpo_jax.models.{m}" for m in NETWORK}:
            loaders = {f"grpo_jax.models.{m}" for m in LOADERS}
            assert not ours(tree) & loaders, name


def python(code, *args):
    """Runs code in a fresh interpreter; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = "; print(*sorted({name.split('.')[0] for name in sys.modules}))"


def test_importing_the_package_takes_under_two_seconds_and_no_jax():
    code = (
        "import sys, time; t = time.perf_counter(); import grpo_jax; print(time.perf_counter()-t)"
    )
    seconds, loaded = python(code + LOADED).splitlines()
    assert float(seconds) < 2
    assert not {"jax", "flax", "transformers", "numpy"} & set(loaded.split())


def test_the_maths_loads_neither_flax_nor_transformers():
    loaded = python("import sys; from grpo_jax import ops, objectives, rewards, tasks" + LOADED)
    assert "jax" in loaded.split()
    assert not {"flax", "transformers", "orbax", "tyro", "rich", "safetensors"} & set(
        loaded.split()
    )
    loaded = python("import sys; import grpo_jax; grpo_jax.grpo_step" + LOADED)
    assert not {"flax", "transformers", "orbax", "tyro", "rich"} & set(loaded.split())


def test_what_needs_no_jax_loads_none():
    names = [f"grpo_jax.{name}" for name in WITHOUT_JAX] + ["experiments.toy"]
    names += sorted(name for name in NAMES if name.startswith("experiments."))
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    loaded = python(code + LOADED, *names).split()
    assert "grpo_jax" in loaded
    assert not {"jax", "flax", "optax", "orbax", "transformers", "gguf"} & set(loaded)


def test_every_public_name_is_there():
    code = (
        "import grpo_jax\n"
        "for name in grpo_jax.__all__: assert getattr(grpo_jax, name) is not None, name\n"
        "from grpo_jax import *\n"
        "assert set(grpo_jax._HOMES) <= set(grpo_jax.__all__)\n"
        "try: grpo_jax.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    assert "nothing" in python(code)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_core_install_brings_no_torch_no_tensorflow_no_pandas():
    found, pending = set(), [("grpo-jax", "")]
    while pending:
        name, extra = pending.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            assert name != "grpo-jax"
            continue  # named, but not for this platform
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in {"", *requirement.extras}:
                pending.append((canonical(requirement.name), wanted))
    packages = {name for name, _ in found}
    assert {"grpo-jax", "jax", "jaxlib", "flax", "tokenizers", "numpy"} <= packages
    assert not [
        name for name in packages if re.match(r"(torch|tensorflow|pandas|keras)(-|$)", name)
    ]
    core = {
        canonical(Requirement(line).name)
        for line in importlib.metadata.requires("grpo-jax")
        if not Requirement(line).marker
    }
    assert core >= {"jax", "flax", "optax", "orbax-checkpoint", "chex", "transformers", "jinja2"}
    assert core >= {"safetensors", "tyro", "rich"}
