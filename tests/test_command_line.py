"""The scripts of bin/, as a user runs them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import l2l_tf
from l2l_tf import problems, update_rules

BIN = pathlib.Path(__file__).parent.parent / "bin"
SMALL = ["--layers=4", "--num_steps=10", "--unroll_length=5", "--problem=quadratic"]


def command(script, *flags):
    return [sys.executable, str(BIN / script), *flags]


def call(script, *flags):
    return subprocess.run(command(script, *flags), capture_output=True, text=True)


def test_second_derivatives_need_no_other_flag(tmp_path):
    flags = [*SMALL, "--num_episodes=2", "--validate_every=2", "--noevaluate"]
    done = call("meta_train", *flags, "--second_derivatives", f"--save_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["settings"]["backward_fraction"] == 1.0
    assert card["seconds"] > 0 and "CPU cores" in card["machine"]


def test_meta_train_and_evaluate(tmp_path):
    save_dir = tmp_path / "run"
    flags = [*SMALL, "--num_episodes=8", "--validate_every=4", "--num_seeds=2"]
    done = call("meta_train", *flags, f"--save_dir={save_dir}")
    assert done.returncode == 0, done.stderr
    assert "inner_steps_per_second" in done.stdout
    assert "learned lstm: loss sum" in done.stdout

    card = json.loads((save_dir / "card.json").read_text())
    assert card["command"] == "bin/meta_train " + " ".join(
        ["--problem=quadratic", "--layers=4", "--num_episodes=8", "--num_steps=10"]
        + ["--unroll_length=5", "--validate_every=4"]
    )
    assert set(card["tables"]) == {"10 steps", "20 steps"}
    assert (save_dir / card["best"]).is_dir()
    for directory, num_steps in ((save_dir, 10), (save_dir / "steps-20", 20)):
        assert json.loads((directory / "results.json").read_text())["num_steps"] == num_steps
        assert (directory / "curves.png").exists()

    output_dir = tmp_path / "out"
    done = call(
        "evaluate",
        "--problem=quadratic",
        f"--optimizers={save_dir}",
        "--baselines=adam",
        "--num_steps=10",
        "--num_seeds=2",
        f"--output_dir={output_dir}",
    )
    assert done.returncode == 0, done.stderr
    assert (output_dir / "curves.png").exists()
    # The rule that was reported on is the rule in the directory.
    before = json.loads((save_dir / "results.json").read_text())["optimizers"]["learned lstm"]
    after = json.loads((output_dir / "results.json").read_text())["optimizers"][str(save_dir)]
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-5)


def test_init_from_goes_on_from_a_rule(tmp_path):
    start = update_rules.RNNprop((3, 2), zero_head=False, seed=1)
    l2l_tf.save(start, tmp_path / "start")
    flags = ["--problem=quadratic", "--num_steps=10", "--unroll_length=5", "--num_episodes=4"]
    flags += ["--validate_every=4", "--noevaluate", f"--save_dir={tmp_path / 'run'}"]
    flags += ["--meta_learning_rate=1e-9", f"--init_from={tmp_path / 'start'}/"]
    done = call("meta_train", *flags)
    assert done.returncode == 0, done.stderr
    trained = l2l_tf.load(tmp_path / "run")
    assert type(trained) is update_rules.RNNprop
    for before, after in zip(start.weights, trained.weights):
        np.testing.assert_allclose(before, after, atol=1e-6)

    text = (tmp_path / "run" / "card.json").read_text()
    settings = json.loads(text)["settings"]
    assert settings["init_from"] == f"start@{l2l_tf.saving.fingerprint(start)}"
    assert (settings["rule"], settings["layers"]) == ("rnnprop", ["3", "2"])
    assert "--init_from=start" in json.loads(text)["command"] and str(tmp_path) not in text

    done = call("meta_train", *flags)  # resumed, and there is nothing left to do
    assert done.returncode == 0, done.stderr
    l2l_tf.save(update_rules.RNNprop((3, 2), seed=2), tmp_path / "start", overwrite=True)
    done = call("meta_train", *flags)
    assert done.returncode != 0 and "with other settings: init_from='start@" in done.stderr


@pytest.mark.slow
def test_a_rule_of_its_own_for_convolutions(tmp_path):
    flags = ["--problem=test_grouped_rules:conv_problem", "--num_steps=4", "--unroll_length=2"]
    flags += ["--rule=averaging", "--conv_rule=kernelwise", "--layers=5", "--num_episodes=2"]
    flags += ["--validate_every=2", "--noevaluate", f"--save_dir={tmp_path / 'run'}"]
    paths = [str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        command("meta_train", *flags),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "run" / "card.json").read_text())["settings"]
    assert (settings["rule"], settings["conv_rule"]) == ("averaging", "kernelwise")
    assert settings["backward_fraction"] == 1.0  # Nothing can be drawn.
    kernels, rest = l2l_tf.load(tmp_path / "run").rules
    assert (kernels.kernel_shape, kernels.layers, rest.layers) == ((3, 3), (5,), (5,))
    assert type(rest) is update_rules.GlobalAveragingLSTM


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    flags = [*SMALL, "--num_episodes=400", "--validate_every=20", "--noevaluate"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call("meta_train", *flags, f"--save_dir={whole}").returncode == 0

    process = subprocess.Popen(
        command("meta_train", *flags, f"--save_dir={killed}"), stdout=subprocess.DEVNULL
    )
    card = killed / "card.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if card.exists() and len(json.loads(card.read_text())["validation"]) >= 4:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    records = json.loads(card.read_text())["validation"]
    assert 4 <= len(records) < 20

    done = call("meta_train", *flags, f"--save_dir={killed}")
    assert done.returncode == 0, done.stderr
    cards = [json.loads((d / "card.json").read_text()) for d in (whole, killed)]
    assert cards[0]["validation"] == cards[1]["validation"]
    assert cards[0]["best"] == cards[1]["best"]
    for a, b in zip(l2l_tf.load(whole).weights, l2l_tf.load(killed).weights):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("meta_train", ["--rule=lstn"], "value should be one of <lstm|rnnprop|averaging>"),
        ("meta_train", ["--problem=digit"], "Did you mean 'digits'"),
        ("meta_train", ["--problem=digits+nan*lasso"], "Received the member: 'nan*lasso'"),
        ("meta_train", ["--num_steps=30"], "num_steps=30, unroll_length=20"),
        ("meta_train", ["--layers=20,x"], "--layers must be integers"),
        (
            "meta_train",
            ["--init_from=some/rule", "--rule=lstm", "--layers=4"],
            "Received also: --rule and --layers",
        ),
        ("meta_train", ["--init_from=no/such"], "No directory 'no/such'"),
        ("evaluate", ["--baselines=adm"], "Did you mean 'adam'"),
        ("evaluate", ["--optimizers=no/such"], "No directory 'no/such'"),
    ],
)
def test_bad_flags_get_one_clear_line(script, flags, message, tmp_path):
    save_dir = [f"--save_dir={tmp_path / 'run'}"] if script == "meta_train" else []
    done = call(script, *flags, *save_dir)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["meta_train", "evaluate"])
def test_help_answers_without_loading_tensorflow(script):
    start = time.monotonic()
    done = call(script, "--help")
    assert time.monotonic() - start < 3
    assert "--problem" in done.stdout and "bin/" in done.stdout
    for name in problems.names.NAMES:
        assert f"{name}: " in done.stdout
