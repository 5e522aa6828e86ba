"""Every flag of the commands with wrong values: one clear line, and nothing is written."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

BIN = pathlib.Path(__file__).parent.parent / "bin"
DRIVER = pathlib.Path(__file__).parent / "flags_of_a_script.py"

LONG = str(10**30)
STYLE = ("--problem=neural_style",)
SUITE = ("--suite=general", "--tune_suite_baselines")


def count(minimum=1):
    return ["", "x", "1.5", "nan", "-3", str(minimum - 1), LONG]


SEED = ["", "x", "0.5", str(2**63)]
PROBLEM = ["", "digit", "0*quadratic", "-1*quadratic", "quadratic+", "no_such:f", "math:", ":f"]
PROBLEM += ["math:no_such", "math:pi", "builtins:dict", "math:sqrt"]
# Of a problem that has no data there, a directory that is none, and a flag that says nothing.
DATA_DIR = ["", "x", ("notes", "--problem=mnist"), ("x", "--problem=quadratic+digits")]
NEURAL_STYLE = {
    "style_image": ["", "x.png", ("x.png", *STYLE), ("notes", *STYLE)],
    "content_images": ["", "x.png", ("x.png", *STYLE), ("x.png,", *STYLE)],
    "heldout_images": ["", "x.png", ("x.png", *STYLE), (",", *STYLE)],
    "image_size": ["x", "64.0", "15", "64", "100000", ("0", *STYLE)],
    "vgg19_weights": ["", "x.npz", ("x.npz", *STYLE), ("notes", *STYLE)],
}
MODULES = ["no_such", ",", "json,json", ".json"]

# Flag → wrong values, each alone or with other flags beside it.
WRONG = {
    "meta_train": {
        **NEURAL_STYLE,
        "backward_fraction": ["", "x", "0", "-1", "1.5", "nan", ("0.5", "--second_derivatives")],
        "conv_rule": ["", "lstn", "no_such:f", "lstm", "math:pi"],
        "credit": ["", "segments", "1"],
        "data_dir": DATA_DIR,
        "estimator": ["", "exact", ("evolution", "--second_derivatives")],
        "eval_steps": ["", "0", "1", "-5", "5,5", "5,,7", "x", "2.5", LONG, ("5", "--noevaluate")],
        "evaluate": ["maybe", "2"],
        "init_from": ["", "no/such", "no-such", ("quadratic", "--layers=4"), "notes"],
        "jit_compile": ["maybe", "2"],
        "layers": ["", "0", "-4", "20,x", "2.5", ",", LONG, ("4", "--rule=test_flags:without")],
        "max_diverged": ["", "x", "-0.1", "1.5", "nan"],
        "max_loss_ratio": ["", "x", "1", "-2", "nan", "inf"],
        "meta_batch_size": [*count(), ("7", "--num_episodes=600"), ("32", "--num_episodes=30")],
        "meta_learning_rate": ["", "x", "0", "-1", "nan", "inf"],
        "modules": MODULES,
        "num_episodes": [*count(), ("30", "--validate_every=100"), "600,600"],
        "num_groups": [*count(), ("7", "--num_episodes=600")],
        "num_seeds": [*count(), ("5", "--noevaluate")],
        "num_steps": [
            "100,40",
            "20,40",
            *count(),
            "1",
            "30",
            "1000000000",
            ("1", "--unroll_length=1"),
        ],
        "num_validation_episodes": count(),
        "objective": ["", "mean"],
        "objective_floor": ["x", "nan", ("0", "--objective=relative"), "0.1"],
        "problem": PROBLEM,
        "rule": ["", "lstn", "no_such:f", "math:pi", "math:sqrt", "json:JSONDecoder", "none"],
        "save_dir": ["", "notes", "notes/below"],
        "second_derivatives": ["maybe", ("true", "--backward_fraction=0.5")],
        "seed": SEED,
        "standard_deviation": ["", "x", "nan", ("0", "--estimator=evolution"), "0.1"],
        "strategy": ["", "all"],
        "unroll_length": [*count(), "30", "20,20", ("20,30", "--num_steps=20,40")],
        "validate_every": [*count(), "7", ("100", "--meta_batch_size=8", "--num_episodes=800")],
    },
    "evaluate": {
        **NEURAL_STYLE,
        "baselines": ["adm", "sgd,sgd", "adam,", ",", ""],
        "data_dir": DATA_DIR,
        "modules": MODULES,
        "num_seeds": count(),
        "num_steps": [*count(2), "1000000000"],
        "num_tuning_seeds": [*count(), ("5", "--baselines=", "--optimizers=quadratic")],
        "optimizers": [
            "no/such",
            "no-such",
            "a,a",
            "a,a/",
            "quadratic,",
            ",",
            "notes",
            ("", "--baselines="),
        ],
        "output_dir": ["", "notes", "notes/below"],
        "problem": PROBLEM,
        "seed": SEED,
        "suite": ["", "special", ("general", "--problem=quadratic")],
        "suite_baselines": ["", "x", ("", *SUITE), ("notes/below", "--suite=general")],
        "suite_problems": ["", "graphs", "graph,graph", ",", "graph"],
        "tune_suite_baselines": ["maybe", "true", ("true", "--suite=general")],
    },
    "pretrained": {
        "add": ["", "mine", ("../mine", "--run=x")],
        "data_dir": ["", ("x", "--names=quadratic"), ("x", "--add=a", "--run=b")],
        "heldout_images": ["", ",", ("x.png", "--names=quadratic")],
        "horizons": ["", "x", "1", "0", "2.5", LONG, ("5", "--horizons=5")],
        "known_limits": ["", "none"],
        "names": ["", "mnits", "quadratic,quadratic", ",", ("quadratic", "--add=a", "--run=b")],
        "num_seeds": count(),
        "run": ["", "x", ("no/such", "--add=mine"), ("notes", "--add=mine")],
        "vgg19_weights": ["", ("x.npz", "--names=quadratic"), ("x.npz", "--names=neural-style")],
        "write": ["maybe", ("true", "--add=a", "--run=b")],
    },
}


def without():
    """A rule that has no layers."""
    from l2l_tf import update_rules

    return update_rules.SGD()


def command_line(flag, case):
    value, *others = [case] if isinstance(case, str) else case
    return [*others, f"--{flag}={value}"]


@pytest.mark.parametrize("script", WRONG)
def test_every_flag_with_wrong_values(script):
    lines = [command_line(flag, case) for flag, cases in WRONG[script].items() for case in cases]
    done = subprocess.run(
        [sys.executable, str(DRIVER)],
        input=json.dumps({"script": str(BIN / script), "cases": lines}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["flags"] == sorted(WRONG[script])
    wrong = []
    for line, case in zip(lines, answer["cases"]):
        text = case["text"].replace("Pass --helpshort or --helpfull to see help on flags.\n", "")
        flag, _, value = line[-1].removeprefix("--").partition("=")
        is_named = flag in text or any(v in text for v in re.split("[,/]", value) if len(v) > 1)
        is_clear = text.count("\n") == 1 and len(text) < 1000 and "Traceback" not in text
        if case["code"] != 1 or not is_named or not is_clear or case["written"]:
            wrong.append((" ".join(line), case["code"], text[-1000:], case["written"]))
    assert not wrong, "\n".join(map(str, wrong))
