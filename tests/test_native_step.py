"""Hierarchical's native step in a LearnedOptimizer, against XLA's; and where it gives way."""

import pickle

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from native_builds import needs_library
from test_hierarchical import random_rule

import l2l_tf
from l2l_tf.engine import pieces
from l2l_tf.update_rules import Hierarchical

pytestmark = needs_library

SHAPES = [(9, 5), (5,), (3, 3, 2, 4), (), (1,), (2, 0), (70, 1), (130, 40)]
ALL = tuple(range(len(SHAPES)))


@pytest.fixture(autouse=True)
def _not_turned_off(monkeypatch):
    monkeypatch.delenv("L2L_TF_NATIVE", raising=False)


def random_gradients(t, shapes=SHAPES):
    rng = np.random.default_rng(t)
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]


class Run:
    """Some variables and an optimizer for them."""

    def __init__(self, units=8, dtype="float32", jit_compile=None, averaging=0.0, **kwargs):
        self.variables = [tf.Variable(tf.cast(v, dtype)) for v in random_gradients(100)]
        rule = random_rule(0.3, coordinate_units=units, averaging=averaging)
        self.optimizer = l2l_tf.LearnedOptimizer(rule, **kwargs)
        self.optimizer.build(self.variables)
        self._step = tf.function(self._apply, jit_compile=jit_compile)

    def _apply(self, gradients, present):
        self.optimizer.apply(gradients, [self.variables[k] for k in present])

    def __call__(self, gradients, present=ALL):
        gradients = [tf.cast(gradients[k], self.variables[k].dtype) for k in present]
        self._step(gradients, present)
        return self

    def uses_the_kernel(self):
        graphs = [f.graph for f in self._step._list_all_concrete_functions()]
        return any("L2lHierarchicalUpdate" in str(graph.as_graph_def()) for graph in graphs)

    def values(self):
        """Weights, and state as in files."""
        leaves = self.variables + self.optimizer._state.leaves
        return [np.ravel(tf.cast(np.asarray(leaf), tf.float64)) for leaf in leaves]


def assert_near(run, other, tolerance):
    for a, b in zip(run.values(), other.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def by_xla(monkeypatch, *args, **kwargs):
    monkeypatch.setenv("L2L_TF_NATIVE", "0")
    try:
        run = Run(*args, **kwargs)
        for t in range(6):
            run(random_gradients(t))
        assert not run.uses_the_kernel()
        return run
    finally:
        monkeypatch.delenv("L2L_TF_NATIVE")


@pytest.mark.parametrize(
    "options, tolerance",
    [
        ({"units": 0}, 1e-5),
        ({"units": 4, "weight_decay": 10.0, "learning_rate": 0.5}, 1e-5),
        ({"units": 8, "state_dtype": "bfloat16"}, 2e-2),
        ({"units": 0, "averaging": 0.9, "learning_rate": 0.5}, 1e-5),
        ({"units": 8, "averaging": 0.9, "state_dtype": "bfloat16"}, 2e-2),
    ],
)
@pytest.mark.parametrize("whole", [100, pieces.WHOLE])
def test_it_is_the_step_of_xla(monkeypatch, options, tolerance, whole):
    monkeypatch.setattr(pieces, "WHOLE", whole)
    run = Run(**options)
    before = run.values()
    for t in range(6):
        run(random_gradients(t))
    assert run.uses_the_kernel()
    assert (len(run.optimizer._state._pieces) > 20) == (whole == 100)
    assert_near(run, by_xla(monkeypatch, **options), tolerance)
    assert max(np.max(np.abs(a - b), initial=0) for a, b in zip(before, run.values())) > 0.01


def test_it_gives_way_and_takes_over_at_any_step(monkeypatch):
    """Where XLA compiles the step, or a variable has no gradient: in the pieces that it has."""
    run, compiled = Run(), Run(jit_compile=True)
    for t in range(6):
        monkeypatch.setenv("L2L_TF_NATIVE", str(t % 2))
        present = (0, 3, 7) if t == 2 else ALL
        run._step = tf.function(run._apply)  # anew: a graph is one of both
        run(random_gradients(t), present)
        assert run.uses_the_kernel() == t % 2
        monkeypatch.delenv("L2L_TF_NATIVE")
        compiled(random_gradients(t), present)
    assert not compiled.uses_the_kernel()
    assert_near(run, compiled, 1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("bfloat16", 0.0)])
def test_variables_of_other_dtypes_are_left_to_xla(monkeypatch, dtype, tolerance):
    run = Run(dtype=dtype)
    for t in range(6):
        run(random_gradients(t))
    assert not run.uses_the_kernel()
    assert_near(run, by_xla(monkeypatch, dtype=dtype), tolerance)


def test_rules_that_it_does_not_know_are_left_to_xla():
    class Halved(Hierarchical):
        def update(self, inputs, state, controls):
            updates, state = super().update(inputs, state, controls)
            return 0.5 * updates, state

    assert Halved().fused_step() is None
    for rule in (Hierarchical(dtype="float64"), Hierarchical(coordinate_units=5)):
        assert not rule.fused_step().build()
    variable = tf.Variable([1.0, -1.0])
    optimizer = l2l_tf.LearnedOptimizer(Hierarchical(coordinate_units=5))
    step = tf.function(lambda: optimizer.apply([tf.constant([1.0, 2.0])], [variable]))
    step()
    assert "L2lHierarchical" not in str(step.get_concrete_function().graph.as_graph_def())
    assert variable.numpy()[0] < 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    run = Run()(random_gradients(0))
    before = run.values()
    gradients = random_gradients(1)
    gradients[2] = tf.tensor_scatter_nd_update(gradients[2], [[1, 2, 0, 3]], [value])
    run(gradients)
    assert run.uses_the_kernel() and run.optimizer.skipped_steps == 1
    for a, b in zip(before, run.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_others_hold_stays():
    """New weights take the gradients' memory, and the state that of the step before: not if it is
    needed."""
    run = Run()(random_gradients(0))

    @tf.function
    def step(gradients):
        gradients = [2.0 * gradient for gradient in gradients]
        held = [tf.convert_to_tensor(v) for v in run.variables]
        states = [tf.convert_to_tensor(v) for v in tf.nest.flatten(run.optimizer._state.pieces)]
        run.optimizer.apply(gradients, run.variables)
        return gradients, held, states

    held = [tf.convert_to_tensor(v) for v in run.variables]
    values = [v.numpy() for v in held]
    states = [v.numpy() for v in tf.nest.flatten(run.optimizer._state.pieces)]
    results = step(random_gradients(1))
    expected = [2.0 * g.numpy() for g in random_gradients(1)], values, states
    for received, of_all in zip((*results, held), (*expected, values), strict=True):
        for a, b in zip(received, of_all, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(values[0], run.variables[0])


def test_a_state_goes_from_its_pieces_to_others(monkeypatch):
    """As from a machine with a compiler to one without."""
    monkeypatch.setattr(pieces, "WHOLE", 100)
    run = Run()(random_gradients(0))
    conftest.in_pieces(monkeypatch, side_by_side=2, least=10, most=700)
    monkeypatch.setenv("L2L_TF_NATIVE", "0")
    other = Run()
    other.optimizer = pickle.loads(pickle.dumps(run.optimizer))
    other.optimizer.build(other.variables)
    sizes = [
        {p.shape[-1] for p in r.optimizer._state._pieces if len(p.shape) == 1} for r in (run, other)
    ]
    assert sizes[0] != sizes[1]
    for a, b in zip(run.values()[len(SHAPES) :], other.values()[len(SHAPES) :], strict=True):
        np.testing.assert_array_equal(a, b)


def new_model(rule, **kwargs):
    keras.utils.set_random_seed(0)
    model = conftest.mlp()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=l2l_tf.LearnedOptimizer(rule, **kwargs), loss=loss)
    return model


@pytest.mark.slow
def test_two_replicas_equal_one_device():
    ends = []
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = new_model(random_rule(0.3))
    for model in (mirrored, new_model(random_rule(0.3))):
        model.fit(conftest.image_data(), epochs=2, verbose=0, shuffle=False)
        ends.append(np.concatenate([v.numpy().ravel() for v in model.trainable_variables]))
    for variable in tf.nest.flatten(mirrored.optimizer._state.pieces):
        for replica in variable.values[1:]:
            np.testing.assert_array_equal(replica, variable.values[0])
    np.testing.assert_allclose(*ends, atol=1e-4)


def test_no_saved_model_has_it(tmp_path):
    model = new_model(Hierarchical())
    model.fit(conftest.image_data(), verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    l2l_tf.save(model.optimizer.rule, str(tmp_path / "rule"))
    graphs = list(tmp_path.rglob("saved_model.pb"))
    assert len(graphs) == 3
    assert not any(b"L2lHierarchical" in graph.read_bytes() for graph in graphs)
