"""Rules with a control in a LearnedOptimizer: its step, its files; and in a SavedModel."""

import pickle
import subprocess
import sys

import conftest
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from level_rules import RULES, LearnedDecay, ThreeLevels, flat, start, step

import l2l_tf
from l2l_tf import update_rules
from l2l_tf.update_rules.levels import Inputs

SHAPES = [(3, 4), (4,), (2, 0), (), (2, 3, 2)]
OF_SIZE = [shape for shape in SHAPES if 0 not in shape]
SMALL = {"side_by_side": 4, "least": 2, "most": 3}  # pieces end within tensors


def lstm():
    return update_rules.CoordinatewiseLSTM((4,), zero_head=False, seed=1)


def grouped():
    return update_rules.GroupedRule([("bias", lstm()), ("", ThreeLevels())])


def random(shapes, seed):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]


def by_hand(rule, num_steps, present):
    """The parameters after some steps; only the present tensors have gradients in the second."""
    parameters = random(OF_SIZE, 0)
    of_tensors, control = start(rule, OF_SIZE)
    for t in range(num_steps):
        places = present if t == 1 else range(len(OF_SIZE))
        some = tf.nest.map_structure(lambda leaf, p=places: tf.gather(leaf, p, axis=-1), control)
        updates, (new, some) = step(
            rule,
            [random(OF_SIZE, 1 + t)[k] for k in places],
            [parameters[k] for k in places],
            ([of_tensors[k] for k in places], some),
            tf.identity,
        )
        for column, k in enumerate(places):
            parameters[k] += updates[column]
            of_tensors[k] = new[column]
            control = tf.nest.map_structure(
                lambda leaf, of_some, k=k, c=column: tf.concat(
                    [leaf[..., :k], of_some[..., c : c + 1], leaf[..., k + 1 :]], axis=-1
                ),
                control,
                some,
            )
    return np.concatenate([p.numpy().ravel() for p in parameters])


def by_optimizer(rule, num_steps, present, jit_compile, **kwargs):
    """The same, beside a variable without elements."""
    variables = [tf.Variable(p) for p in random(OF_SIZE, 0)]
    empty = tf.Variable(tf.zeros([2, 0]))
    optimizer = l2l_tf.LearnedOptimizer(rule, **kwargs)
    optimizer.build([*variables[:2], empty, *variables[2:]])
    apply = tf.function(optimizer.apply, jit_compile=jit_compile)
    for t in range(num_steps):
        places = present if t == 1 else range(len(OF_SIZE))
        gradients = [random(OF_SIZE, 1 + t)[k] for k in places]
        apply([*gradients, tf.zeros([2, 0])], [*(variables[k] for k in places), empty])
    assert optimizer.skipped_steps == 0
    return np.concatenate([v.numpy().ravel() for v in variables])


@pytest.mark.parametrize(
    "name, jit_compile, pieces, state_dtype, tolerance",
    [
        ("learned decay", False, SMALL, "float32", 1e-5),
        ("moments", True, SMALL, "float32", 1e-5),
        ("moments", False, SMALL, "bfloat16", 2e-2),
    ],
)
def test_a_step_is_what_the_contract_says(
    monkeypatch, name, jit_compile, pieces, state_dtype, tolerance
):
    conftest.in_pieces(monkeypatch, **pieces)
    rule, present = RULES[name](), [0, 3]
    expected = by_hand(rule, 4, present)
    received = by_optimizer(rule, 4, present, jit_compile, state_dtype=state_dtype)
    assert np.abs(expected - np.concatenate([flat(p) for p in random(OF_SIZE, 0)])).min() > 1e-3
    np.testing.assert_allclose(received, expected, rtol=tolerance, atol=tolerance)


def test_bfloat16_is_for_the_coordinates_alone():
    """A control may add up small steps, which bfloat16 would round away."""
    model = new_model(ThreeLevels(), state_dtype="bfloat16")
    model.optimizer.build(model.trainable_variables)
    leaves = model.optimizer._state.leaves
    assert {leaf.dtype for leaf in leaves if leaf.shape[-1] > 1} == {"bfloat16"}
    assert {leaf.dtype for leaf in leaves if leaf.shape[-1] == 1} == {"float32"}


def test_a_grouped_rules_own_update_is_the_same_step():
    rule = update_rules.GroupedRule([("", ThreeLevels())])
    parameters = random(OF_SIZE, 0)
    state = rule.initial_state([("", shape) for shape in OF_SIZE])
    for t in range(3):
        updates, state = rule.update(Inputs(random(OF_SIZE, 1 + t), parameters), state)
        parameters = [p + u for p, u in zip(parameters, updates)]
    expected = by_hand(rule.rules[0], 3, range(len(OF_SIZE)))
    np.testing.assert_allclose(np.concatenate([flat(p) for p in parameters]), expected, rtol=1e-5)


def new_model(rule, cls=l2l_tf.LearnedOptimizer, jit_compile="auto", **kwargs):
    keras.utils.set_random_seed(0)
    model = conftest.mlp()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=cls(rule, **kwargs), loss=loss, jit_compile=jit_compile)
    return model


def fit(model, **kwargs):
    data = conftest.image_data(**kwargs)
    return model.fit(data, epochs=1, verbose=0, shuffle=False).history["loss"]


def weights(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def test_two_replicas_equal_one_device():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = new_model(LearnedDecay())
    one = new_model(LearnedDecay(), jit_compile=True)
    for model in (mirrored, one):
        before = weights(model)
        fit(model)
        assert np.abs(weights(model) - before).max() > 1e-2
    for variable in tf.nest.flatten(mirrored.optimizer._state.pieces):
        for replica in variable.values[1:]:
            np.testing.assert_array_equal(replica, variable.values[0])
    np.testing.assert_allclose(weights(mirrored), weights(one), atol=1e-5)


def test_variables_one_by_one_are_refused_since_sums_over_the_model_would_be_wrong():
    with pytest.raises(
        NotImplementedError, match="three_levels.* .ThreeLevels. .*one variable at a time"
    ):
        fit(new_model(ThreeLevels(), conftest.OneByOne))
    with pytest.raises(NotImplementedError, match="one variable at a time"):
        fit(new_model(grouped(), conftest.OneByOne))
    ends = []
    for cls in (conftest.OneByOne, l2l_tf.LearnedOptimizer):
        variable = tf.Variable([1.0, -2.0])
        for _ in range(2):
            cls(ThreeLevels()).apply([tf.constant([0.5, 0.1])], [variable])
        ends.append(variable.numpy())
    np.testing.assert_allclose(*ends, rtol=1e-6)


def state(model):
    return [np.asarray(variable) for variable in model.optimizer.variables]


def by_keras_file(model, make_rule, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def by_weights_file(model, make_rule, path):
    model.save_weights(path / "model.weights.h5")
    restored = new_model(make_rule())
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(path / "model.weights.h5")
    return restored


def by_checkpoint(model, make_rule, path, is_built=True):
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(path / "checkpoint")
    restored = new_model(make_rule())
    if is_built:
        restored.optimizer.build(restored.trainable_variables)
    status = tf.train.Checkpoint(model=restored, optimizer=restored.optimizer).restore(saved)
    if is_built:
        status.assert_consumed()
    else:
        restored.optimizer.build(restored.trainable_variables)
    return restored


def by_checkpoint_before_it_is_built(model, make_rule, path):
    return by_checkpoint(model, make_rule, path, is_built=False)


def by_pickle(model, make_rule, path):
    return pickle.loads(pickle.dumps(model))


def content(path):
    """The names and shapes of all that is in the files below."""
    found = []
    for file in path.rglob("*.h5"):
        with h5py.File(file) as opened:
            opened.visititems(lambda name, item: found.append((name, getattr(item, "shape", ()))))
    for file in path.rglob("*.index"):
        found += tf.train.list_variables(str(file.with_suffix("")))
    return sorted(map(str, found))


@pytest.mark.parametrize("make_rule", [ThreeLevels, lstm, grouped])
@pytest.mark.parametrize(
    "save_and_restore",
    [
        by_keras_file,
        by_weights_file,
        by_checkpoint,
        by_checkpoint_before_it_is_built,
        by_pickle,
    ],
)
def test_saved_in_some_pieces_and_restored_in_others(
    save_and_restore, make_rule, tmp_path, monkeypatch
):
    conftest.in_pieces(monkeypatch, side_by_side=2, least=50, most=60)
    model = new_model(make_rule())
    model.optimizer.build(model.trainable_variables)
    saved, rng = state(model), np.random.default_rng(0)
    for index, variable in enumerate(model.optimizer.variables):
        if index >= 2:  # not iterations and learning rate
            saved[index] = rng.normal(size=variable.shape).astype(variable.dtype)
            variable.assign(saved[index])
    conftest.in_pieces(monkeypatch, side_by_side=3, least=10, most=11)
    restored = save_and_restore(model, make_rule, tmp_path)
    restored.optimizer.build(restored.trainable_variables)
    ours, others = (len(m.optimizer._state._pieces) for m in (model, restored))
    assert ours < others
    for expected, received in zip(saved, state(restored), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_training_goes_on_in_other_pieces(tmp_path, monkeypatch):
    model = new_model(ThreeLevels())
    fit(model)
    conftest.in_pieces(monkeypatch, side_by_side=2, least=50, most=60)
    restored = by_checkpoint_before_it_is_built(model, ThreeLevels, tmp_path)
    before = weights(model)
    np.testing.assert_array_equal(weights(restored), before)
    fit(model)
    fit(restored)
    assert np.abs(weights(model) - before).max() > 1e-2
    np.testing.assert_allclose(weights(restored), weights(model), atol=1e-4)


def test_no_file_says_how_coordinates_were_cut(tmp_path, monkeypatch):
    contents = []
    for most in (60, 11):
        conftest.in_pieces(monkeypatch, side_by_side=2, least=10, most=most)
        path = tmp_path / str(most)
        path.mkdir()
        model = new_model(grouped())
        model.optimizer.build(model.trainable_variables)
        by_weights_file(model, grouped, path)
        by_checkpoint(model, grouped, path)
        contents.append(content(path))
    assert len(contents[0]) > 40 and contents[0] == contents[1]


def test_a_saved_rule_runs_in_tensorflow_alone(tmp_path):
    rule = grouped()
    l2l_tf.save(rule, tmp_path / "grouped")
    (of_bias, _), (_, levels) = zip(rule.rules, l2l_tf.load(tmp_path / "grouped").rules)
    l2l_tf.save(levels, tmp_path / "levels")
    np.savez(
        tmp_path / "in.npz",
        parameters=np.concatenate([flat(p) for p in random(OF_SIZE, 0)]),
        gradients=[np.concatenate([flat(g) for g in random(OF_SIZE, t)]) for t in (1, 2, 3)],
    )
    program = f"""
import numpy as np, sys, tensorflow as tf
given = np.load("in.npz")
shapes = tf.ragged.constant({[list(shape) for shape in SHAPES]}, tf.int32)
ends = []
for m in (tf.saved_model.load("levels"), tf.saved_model.load("grouped").rules[1]):
    parameters, state = tf.constant(given["parameters"]), m.initial_state(shapes)
    for gradients in given["gradients"]:
        updates, state = m.update(tf.constant(gradients), parameters, state, shapes)
        parameters += updates
    ends.append(parameters.numpy())
assert "l2l_tf" not in sys.modules
np.save("out.npy", ends)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = by_hand(rule.rules[1], 3, range(len(OF_SIZE)))
    for received in np.load(tmp_path / "out.npy"):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)
