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
from l2l_tf import update_rules
from l2l_tf.meta_training import new_rules
from l2l_tf.update_rules import registry

ROOT = pathlib.Path(__file__).parent.parent
BIN = ROOT / "bin"
SMALL = ["--layers=4", "--num_steps=10", "--unroll_length=5", "--problem=quadratic"]


def command(script, *flags):
    return [sys.executable, str(BIN / script), *flags]


def call(script, *flags, cwd=None):
    return subprocess.run(command(script, *flags), capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
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


@pytest.mark.slow
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


def slow(*values):
    """For what loads TensorFlow before it fails: by default, tests/test_flags.py does it once."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "script, flags, message",
    [
        (
            "meta_train",
            ["--rule=lstn"],
            "value should be one of <lstm|rnnprop|averaging|hierarchical|hierarchical-lite>",
        ),
        slow("meta_train", ["--problem=digit"], "Did you mean 'digits'"),
        slow("meta_train", ["--problem=digits+nan*lasso"], "Received the member: 'nan*lasso'"),
        ("meta_train", ["--num_steps=30"], "num_steps=['30'], unroll_length=['20']"),
        ("meta_train", ["--layers=20,x"], "--layers must be integers"),
        (
            "meta_train",
            ["--init_from=some/rule", "--rule=lstm", "--layers=4"],
            "Received also: --rule and --layers",
        ),
        slow("meta_train", ["--init_from=no/such"], "No directory 'no/such'"),
        ("evaluate", ["--baselines=adm"], "Did you mean 'adam'"),
        slow("evaluate", ["--optimizers=no/such"], "No directory 'no/such'"),
    ],
)
def test_bad_flags_get_one_clear_line(script, flags, message, tmp_path):
    save_dir = [f"--save_dir={tmp_path / 'run'}"] if script == "meta_train" else []
    done = call(script, *flags, *save_dir)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "num_episodes, meta_batch_size, expected",
    [
        (600, 1, 100),
        (30, 1, 30),
        (19200, 32, 96),
        (100_000, 1, 100),
        (250, 1, 125),
        (7, 7, 7),
        (64, 32, 64),
        (1009, 1, 1009),  # a prime: at its end, rather than after each episode
        (10**9, 1, 100),
    ],
)
def test_validations_are_about_100_episodes_apart(num_episodes, meta_batch_size, expected):
    program = f"""
import runpy, sys
script = runpy.run_path({str(BIN / "meta_train")!r}, run_name="script")
script["FLAGS"](["x", "--num_episodes={num_episodes}", "--meta_batch_size={meta_batch_size}"])
print(script["_validate_every"]({num_episodes}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr


OWN = """
import os
import keras
import l2l_tf

def my_problem():
    open("imported", "w").close()
    return l2l_tf.problems.Quadratic(3)

@keras.saving.register_keras_serializable("own")
class MyRule(l2l_tf.update_rules.CoordinatewiseLSTM):
    pass
"""


@pytest.mark.slow
def test_modules_of_the_working_directory(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    flags = ["--layers=4", "--num_steps=10", "--unroll_length=5", "--num_episodes=30"]
    flags += ["--problem=mine:my_problem", "--rule=mine:MyRule", "--eval_steps=5", "--num_seeds=2"]
    done = call("meta_train", *flags, "--save_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "learned mine:MyRule: loss sum" in done.stdout
    settings = json.loads((tmp_path / "run" / "card.json").read_text())["settings"]
    assert (settings["rule"], settings["layers"]) == ("mine:MyRule", ["4"])
    assert settings["validate_every"] == 30  # by default, since 100 does not divide 30

    flags = ["--problem=quadratic", "--baselines=", "--num_steps=5", "--num_seeds=2"]
    flags += ["--optimizers=run/"]
    done = call("evaluate", *flags, cwd=tmp_path)
    assert done.returncode == 1 and "Import the module that defines it" in done.stderr
    done = call("evaluate", *flags, "--modules=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    flags = ["--init_from=run/", "--problem=quadratic", "--num_steps=10", "--unroll_length=5"]
    flags += ["--num_episodes=2", "--noevaluate", "--modules=mine", "--save_dir=again"]
    done = call("meta_train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def started(process, is_there):
    """Whether something is there within two minutes, while a process runs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if is_there():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_an_interrupt_is_one_line_and_the_same_command_resumes(tmp_path):
    flags = [*SMALL, "--num_episodes=400", "--validate_every=20", "--noevaluate"]
    flags += [f"--save_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        command("meta_train", *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    card = tmp_path / "run" / "card.json"
    assert started(process, lambda: card.exists() and json.loads(card.read_text())["validation"])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in errors.splitlines() if line and "0000 00:00" not in line]
    assert lines[-1].startswith("bin/meta_train: interrupted; the same command resumes")
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors
    assert call("meta_train", *flags).returncode == 0
    assert json.loads(card.read_text())["validation"][-1]["episodes"] == 400


@pytest.mark.slow
def test_an_interrupt_while_baselines_are_tuned(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    flags = ["--problem=mine:my_problem", "--num_steps=10000", "--output_dir=out"]
    process = subprocess.Popen(
        command("evaluate", *flags),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert started(process, (tmp_path / "imported").exists)
    time.sleep(2)  # It tunes; each of its calls of TensorFlow takes some ten seconds.
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.rstrip().endswith("bin/evaluate: interrupted")
    assert "Traceback" not in errors and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "statement, code, line",
    [
        ("raise ValueError('one\\n  two')", 1, "bin/x: one two"),
        ("raise MemoryError", 1, "bin/x: MemoryError"),
        ("raise RuntimeError('no best')", 1, "bin/x: no best"),
        ("raise FloatingPointError('nan')", 1, "bin/x: nan"),
        ("1 / 0", 1, "bin/x: ZeroDivisionError: division by zero"),
        ("open('no/such')", 1, "bin/x: [Errno 2] No such file or directory: 'no/such'"),
        ("import no_such", 1, "bin/x: No module named 'no_such'"),
        ("interrupted()", 130, "bin/x: interrupted"),
        ("interrupted_in_a_callback()", 130, "bin/x: interrupted"),
        ("terminated()", 75, "bin/x: stopped by SIGTERM"),
        ("tensorflow_fails()", 1, "bin/x: ResourceExhaustedError: no memory"),
    ],
)
def test_a_command_ends_with_one_line(statement, code, line):
    program = f"""
import os, runpy, signal, time

def main():
    {statement}

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

def interrupted_in_a_callback():
    try:
        interrupted()
    except BaseException:
        raise KeyError("what the library made of it")

def tensorflow_fails():
    import tensorflow as tf
    raise tf.errors.ResourceExhaustedError(None, None, "no memory\\n\\nhere")

runpy.run_path({str(ROOT / "l2l_tf" / "command_line.py")!r})["run"]("bin/x", main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code
    lines = [text for text in done.stderr.splitlines() if text.startswith("bin/x: ")]
    assert len(lines) == 1 and lines[0].startswith(line)
    assert "Traceback" not in done.stderr and "KeyError" not in done.stderr


def test_errors_of_ours_keep_their_traceback_and_others_show_it_if_asked():
    program = f"""
import runpy

def main():
    raise RAISED("here")

runpy.run_path({str(ROOT / "l2l_tf" / "command_line.py")!r})["run"]("bin/x", main)
"""
    for error, environment in (("KeyError", {}), ("ValueError", {"L2L_TF_TRACEBACK": "1"})):
        done = subprocess.run(
            [sys.executable, "-c", program.replace("RAISED", error)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert done.returncode == 1 and "Traceback" in done.stderr


def test_the_registry_has_every_rule_that_can_be_meta_trained_by_name():
    by_name = {
        name: (getattr(update_rules, cls), options)
        for name, (cls, options, _) in registry.CONV_RULES.items()
    }
    classes = [getattr(update_rules, name) for name in update_rules.__all__]
    hand_designed = update_rules.SGD.__bases__[0]
    others = (update_rules.UpdateRule, update_rules.GroupedRule)
    learned = {c for c in classes if c not in others and not issubclass(c, hand_designed)}
    assert {cls for cls, _ in by_name.values()} == learned
    for name, (cls, options) in by_name.items():
        assert new_rules.name_of(cls(**options)) == name
    help_text = call("meta_train", "--help").stdout
    for name, (_, _, what) in registry.CONV_RULES.items():
        assert name in help_text and what[:20] in " ".join(help_text.split())
