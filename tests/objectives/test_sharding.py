"""Groups split over devices: the loss and gradient of every preset are still the equation's.

Run as a program it is what the test starts, in a process with four devices.
"""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEVICES = 4


def test_splitting_over_devices_changes_nothing():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]


def main():
    """Every case in float64, from rewards to the gradient, one prompt on each device."""
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")

    import batches
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from oracles import papers
    from paper_cases import CASES, FAST

    mesh = jax.make_mesh((DEVICES,), ("prompts",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("prompts"))

    def put(name, x):
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.device_put(x, whole if name == "reward_weights" else split)

    for name, case in CASES.items():

        def run(example, objective=case.objective):
            batch = batches.prepared(objective, example)
            return batches.loss_and_gradient(objective, example.log_probs, example.entropy, batch)

        example = case.example(shape=(DEVICES, 4, 7))
        placed = batches.replaced(example, vars(example), put)
        assert len(placed.rewards.addressable_shards[0].data) == 1
        loss, gradient = jax.jit(run, out_shardings=(None, split), compiler_options=FAST)(placed)
        wanted = papers.loss_and_slopes(case.oracle(example), example)
        try:
            batches.assert_same((loss, gradient), wanted, 1e-10)
        except AssertionError as error:
            raise AssertionError(name) from error


if __name__ == "__main__":
    main()
