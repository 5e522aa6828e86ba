"""The public surface, who may import whom, and the documentation's promises."""

import ast
import pathlib
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.version import Version

import l2l_tf

REPOSITORY = pathlib.Path(__file__).parent.parent
ROOT = pathlib.Path(l2l_tf.__file__).parent

# Imports point one way: a part may import the parts that stand before it in its row.
ALLOWED = {
    "version": set(),
    "arguments": set(),
    "hooks": set(),
    "paths": {"arguments"},
    "command_line": set(),
    "preprocessing": {"arguments"},
    "update_rules": {"arguments", "hooks", "preprocessing"},
    "problems": {"arguments", "hooks", "paths"},
    "files": {"paths", "update_rules"},
    "catalog": {"arguments", "files", "paths", "update_rules"},
    "saving": {"arguments", "catalog", "files", "update_rules"},
    "engine": {"arguments", "hooks", "problems", "update_rules"},
    "optimizer_state": set(),
    "optimizer": {"arguments", "engine", "hooks", "optimizer_state", "saving", "update_rules"},
    "meta_training": {
        "arguments",
        "catalog",
        "engine",
        "files",
        "hooks",
        "paths",
        "problems",
        "saving",
        "update_rules",
        "version",
    },
    "evaluation": {
        "arguments",
        "catalog",
        "engine",
        "files",
        "hooks",
        "meta_training",
        "optimizer",
        "paths",
        "problems",
        "saving",
        "update_rules",
        "version",
    },
}


def test_public_names():
    assert l2l_tf.__all__ == [
        "LearnedOptimizer",
        "MetaTrainer",
        "__version__",
        "card",
        "compare",
        "evaluate",
        "load",
        "pretrained_names",
        "problems",
        "save",
        "update_rules",
    ]
    for name in l2l_tf.__all__:
        assert hasattr(l2l_tf, name)


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "l2l_tf":
            module = node.module.split(".")
            yield from module[1:2] or [alias.name for alias in node.names]


def test_imports_point_one_way():
    seen = set()
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        seen.add(part)
        received = set(imported_parts(path)) - {part}
        assert received <= ALLOWED[part], f"{path} imports {received - ALLOWED[part]}"
    assert seen == set(ALLOWED)


def test_another_keras_backend_gets_a_clear_error():
    program = """
import sys, types
keras = types.ModuleType("keras")
keras.backend = types.SimpleNamespace(backend=lambda: "jax")
sys.modules["keras"] = keras
import l2l_tf
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError" in done.stderr and "Received: the 'jax' backend" in done.stderr


def test_the_import_loads_no_more_than_keras_and_tensorflow_do():
    program = """
import sys, keras, tensorflow
optional = {"tensorflow_datasets", "sklearn", "matplotlib", "tensorboard"}
before = optional & set(sys.modules)
import l2l_tf
print(sorted((optional & set(sys.modules)) - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def setup_argument(name):
    tree = ast.parse((REPOSITORY / "setup.py").read_text())
    (value,) = (
        node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == name
    )
    return ast.literal_eval(value)


def versions(lines, operator):
    """Name → version, of the requirements with a condition, which is to be of this operator."""
    found = {}
    for requirement in map(Requirement, lines):
        for condition in requirement.specifier:
            assert condition.operator == operator, requirement
            version = Version(condition.version)
            assert found.setdefault(requirement.name, version) == version
    return found


def test_the_oldest_versions_tested_are_those_promised():
    extras = setup_argument("extras_require")
    promised = [*setup_argument("install_requires"), *extras["gpu"], *extras["test"]]
    lines = (REPOSITORY / ".ci" / "oldest.txt").read_text().splitlines()
    tested = [line for line in lines if not line.startswith("#")]
    assert versions(tested, "==") == versions(promised, ">=")
