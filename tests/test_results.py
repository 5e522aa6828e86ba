"""docs/results.md: each of its commands runs, on a reduced budget; each of its figures is there."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_neural_style import photograph, random_weights

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = (ROOT / "docs" / "results.md").read_text()
# A later flag overrides an earlier one.
REDUCED = {
    "bin/meta_train": (
        "--layers=8 --num_steps=4 --unroll_length=2 --meta_batch_size=2 --num_episodes=4 "
        "--validate_every=4"
    ),
    "bin/evaluate": "--num_steps=4 --num_seeds=2 --num_tuning_seeds=1 --baselines=sgd",
}

DATASETS = {"mnist": "mnist", "cifar10": "cifar"}  # to what its problems' names begin with


def commands():
    """The command lines of the blocks of bash code, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", RESULTS, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("bin/")]


def test_figures_are_there_and_all_are_used():
    figures = set(re.findall(r"\]\((results/[\w.-]+\.png)\)", RESULTS))
    assert figures == {f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.png")}


def test_commands_are_of_the_two_scripts():
    assert len(commands()) > 5
    assert {line.split()[0] for line in commands()} == set(REDUCED)


@pytest.mark.slow
def test_each_command_on_a_reduced_budget(tmp_path):
    # In order and in one directory: some take what others wrote.
    missing = [name for name in DATASETS if not tfds.builder(name).is_prepared()]
    np.savez(tmp_path / "vgg19.npz", **random_weights())
    for directory in ("content", "style"):
        (tmp_path / "images" / directory).mkdir(parents=True)
    for seed, file in enumerate(sorted(set(re.findall(r"\$IMAGES/([\w/.-]+)", RESULTS)))):
        picture = photograph(seed, height=160, width=160)
        keras.utils.save_img(tmp_path / "images" / file, picture)
    environment = {
        **os.environ,
        "VGG19": str(tmp_path / "vgg19.npz"),
        "IMAGES": str(tmp_path / "images"),
        "DATA": str(tfds.core.constants.DATA_DIR),
    }
    for line in commands():
        if any(f"--problem={DATASETS[name]}" in line for name in missing):
            continue
        reduced = REDUCED[line.split()[0]]
        if "--init_from" in line:  # a rule as it is
            reduced = reduced.replace("--layers=8 ", "")
        line = f"{sys.executable} {ROOT}/{line} {reduced}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    if missing:
        pytest.skip(f"TFDS' default directory, or TFDS_DATA_DIR, does not hold {missing}")
