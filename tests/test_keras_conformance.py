"""Keras' own optimizer tests, from the installed wheel, run against LearnedOptimizer.

In each of Keras' test modules, SGD, Adam and RMSprop are LearnedOptimizers around the rules of
these names: where Keras multiplies by the learning rate, so does LearnedOptimizer. What cannot
apply is skipped, with the reason.
"""

import contextlib
import importlib.util
import re
import unittest
from unittest import mock

import keras
import pytest
from keras.src import optimizers as keras_optimizers
from keras.src.optimizers import adam, rmsprop, sgd

import l2l_tf
from l2l_tf import update_rules
from l2l_tf.engine import program

if importlib.util.find_spec("keras.src.optimizers.optimizer_test") is None:
    pytest.skip("the wheel of this Keras does not have Keras' tests", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def _no_program_of_another_context():
    """Keras' tests of distribution reset TensorFlow's context, and with it what was compiled."""
    program._shared.clear()
    yield
    program._shared.clear()


class Conforming(l2l_tf.LearnedOptimizer):
    """A LearnedOptimizer with the constructor of one of Keras' optimizers, and its weight decay."""

    weight_decay_scale = 1.0
    rule_keys = ()
    default_learning_rate = 0.001

    def __init__(self, learning_rate=None, name=None, rule=None, state_dtype="float32", **kwargs):
        if learning_rate is None:
            learning_rate = self.default_learning_rate
        of_rule = {key: kwargs.pop(key) for key in self.rule_keys if key in kwargs}
        if name is None:
            name = keras.src.utils.naming.auto_name(type(self).__name__)
        rule = rule or self.make_rule(**of_rule)
        super().__init__(rule, learning_rate, name=name, state_dtype=state_dtype, **kwargs)


@keras.saving.register_keras_serializable("conformance")
class SGD(Conforming):
    rule_keys = ("momentum", "nesterov")
    default_learning_rate = 0.01

    @staticmethod
    def make_rule(momentum=0.0, nesterov=False):
        if momentum:
            return update_rules.Momentum(1.0, momentum, nesterov, name="rule")
        return update_rules.SGD(1.0, name="rule")


@keras.saving.register_keras_serializable("conformance")
class Adam(Conforming):
    rule_keys = ("beta_1", "beta_2", "epsilon")

    @staticmethod
    def make_rule(**kwargs):
        return update_rules.Adam(1.0, name="rule", **kwargs)


@keras.saving.register_keras_serializable("conformance")
class RMSprop(Conforming):
    rule_keys = ("rho", "epsilon")

    @staticmethod
    def make_rule(**kwargs):
        return update_rules.RMSprop(1.0, name="rule", **kwargs)


@contextlib.contextmanager
def swapped():
    """Within, Keras' SGD, Adam and RMSprop are ours, by class and by name."""
    ours = {"SGD": SGD, "Adam": Adam, "RMSprop": RMSprop}
    by_name = {name.lower(): optimizer for name, optimizer in ours.items()}
    with (
        mock.patch.multiple(keras_optimizers, **ours),
        mock.patch.object(sgd, "SGD", SGD),
        mock.patch.object(adam, "Adam", Adam),
        mock.patch.object(rmsprop, "RMSprop", RMSprop),
        mock.patch.dict(keras_optimizers.ALL_OBJECTS_DICT, by_name),
    ):
        yield


def adopt(module, excluded=None, only="", slow=False):
    """Adds the test cases of one of Keras' modules to this one.

    Args:
        module: name below ``keras.src``.
        excluded: dict of test name → reason.
        only: regular expression, found in the names of the tests that touch our optimizers.
        slow: whether to mark them so.
    """
    spec = importlib.util.find_spec(f"keras.src.{module}")
    loaded = importlib.util.module_from_spec(spec)
    with swapped():
        spec.loader.exec_module(loaded)
    for name, case in list(vars(loaded).items()):
        if not (isinstance(case, type) and issubclass(case, unittest.TestCase)):
            continue
        tests = [t for t in dir(case) if t.startswith("test_") and callable(getattr(case, t))]
        for test in tests:
            reason = (excluded or {}).get(test)
            if not re.search(only, test):
                setattr(case, test, None)
            elif reason is not None:
                setattr(case, test, pytest.mark.skip(reason=reason)(getattr(case, test)))
        if slow:
            case = pytest.mark.slow(case)
        case.setUp = _with_swapped_optimizers(case.setUp)
        case.__module__ = __name__
        globals()[f"Keras{name}"] = case


def _with_swapped_optimizers(set_up):
    def wrapped(self):
        context = swapped()
        context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        set_up(self)

    return wrapped


NO_OPTION = "an option of Keras' optimizer that the rule of this name does not have"
DENSE = "a sparse gradient is made dense: a learned rule moves rows whose gradient is 0, too"

# Of the tests that run over all of Keras' optimizers, those of the ones that are ours here.
OURS = r"_(adam|sgd|rmsprop)(_|$)"

adopt(
    "optimizers.optimizer_test",
    only=r"^(?!test_(gradient_accumulation_with_weigth_decay|pickleable_optimizers)([235-9]$|10$))",
)
adopt(
    "optimizers.optimizer_sparse_test",
    only=OURS,
    excluded={
        "test_sparse_correctness_adam_amsgrad": NO_OPTION,
        "test_sparse_correctness_rmsprop_momentum": NO_OPTION,
        "test_sparse_correctness_rmsprop_momentum_centered": NO_OPTION,
        "test_sparse_gradients_adam_amsgrad": NO_OPTION,
        "test_sparse_gradients_rmsprop_momentum": NO_OPTION,
        "test_sparse_gradients_rmsprop_momentum_centered": NO_OPTION,
        "test_sparse_gradients_loss_scale_optimizer_sgd": DENSE,
        "test_sparse_gradients_rmsprop": DENSE,
        "test_sparse_gradients_sgd": DENSE,
    },
)
adopt(
    "optimizers.sgd_test",
    excluded={
        "test_invalid_momentum": "a check of Keras' argument, with Keras' message",
        "test_single_step": "counts the variables: ours has `skipped_steps` besides",
    },
)
adopt(
    "optimizers.adam_test",
    excluded={"test_config": NO_OPTION, "test_correctness_with_golden": NO_OPTION},
)
adopt(
    "optimizers.rmsprop_test",
    excluded={"test_config": NO_OPTION, "test_correctness_with_golden": NO_OPTION},
)
adopt("optimizers.loss_scale_optimizer_test")
adopt("optimizers.multi_optimizer_test")
adopt("backend.tensorflow.optimizer_distribute_test")
adopt("callbacks.backup_and_restore_test", slow=True)
adopt("callbacks.learning_rate_scheduler_test", slow=True)
adopt("callbacks.model_checkpoint_test", slow=True)
adopt("callbacks.reduce_lr_on_plateau_test", slow=True)
adopt("callbacks.swap_ema_weights_test", slow=True)
adopt("callbacks.terminate_on_nan_test", slow=True)
adopt(
    "saving.saving_lib_test",
    only="compile|inference_after|save_to_fileobj|saved_module|saving_custom",
    slow=True,
)
