"""Rules by group of variables, and rules whose coordinates are coupled within a tensor."""

import json
import pickle
import re

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_meta_gradient import TensorNormRule, by_identity, episode, taped

import l2l_tf
from l2l_tf import update_rules
from l2l_tf.engine.unroll import initial_state
from l2l_tf.meta_training import objectives
from l2l_tf.meta_training.meta_gradient import meta_gradient
from l2l_tf.meta_training.new_rules import new_rule
from l2l_tf.update_rules import GroupedRule
from l2l_tf.update_rules.base import UpdateRule

KERNEL, BIAS = ("net/conv2d/kernel", (3, 3, 2, 4)), ("net/dense/bias", (5,))


def lstm(seed=2, **kwargs):
    return update_rules.CoordinatewiseLSTM((4,), zero_head=False, seed=seed, **kwargs)


def averaging():
    return update_rules.GlobalAveragingLSTM((4, 3), 2, zero_head=False, seed=3)


def kernelwise():
    return update_rules.KernelwiseLSTM((3, 3), (4,), zero_head=False, seed=4)


def grouped():
    """An empty, an averaging, a kernelwise and a coordinatewise group."""
    empty = ("no such", update_rules.RNNprop((3,), seed=0))
    return GroupedRule([empty, ("bias$", averaging()), ("conv", kernelwise()), (".*", lstm())])


def interleaved():
    """Two coordinatewise groups, each of several runs of the coordinates."""
    return GroupedRule([("kernel", lstm(1)), ("", lstm(2))])


def nested():
    """As of ``grouped``, its last two groups in a rule of their own."""
    inner = GroupedRule([("conv", kernelwise()), (".*", lstm())])
    empty = ("no such", update_rules.RNNprop((3,), seed=0))
    return GroupedRule([empty, ("bias$", averaging()), (".*", inner)])


def conv_net():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input([6, 6, 1]), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3)]
    )


def conv_problem():
    return conftest.keras_problem(conv_net)


def run(rule, layout, num_steps=3, seed=0):
    """Updates of all steps, of each tensor, for gradients of several orders of magnitude."""
    rng = np.random.default_rng(seed)
    state, updates = rule.initial_state(layout), []
    for _ in range(num_steps):
        gradients = [tf.constant(rng.normal(size=shape), "float32") for _, shape in layout]
        step, state = rule.update(gradients, state)
        updates.append([u.numpy() for u in step])
    return [np.stack(of_tensor) for of_tensor in zip(*updates)]


TENSOR_RULES = {
    "averaging": averaging,
    "kernelwise": kernelwise,
    "grouped": grouped,
    "nested": nested,
}
LAYOUTS = {
    "averaging": [KERNEL, BIAS, ("scalar", ())],
    "kernelwise": [KERNEL, ("conv2d_1/kernel", (3, 3, 1, 1))],
    "grouped": [("dense/kernel", (2, 5)), BIAS, KERNEL],
    "nested": [("dense/kernel", (2, 5)), BIAS, KERNEL],
}


@pytest.mark.parametrize("name", TENSOR_RULES)
def test_tensors_are_independent(name):
    rule, layout = TENSOR_RULES[name](), LAYOUTS[name]
    state = rule.initial_state(layout)
    gradients = [tf.random.normal(shape, seed=1) for _, shape in layout]
    updates, state = rule.update(gradients, state)
    updates, after = rule.update(gradients, state)
    tf.nest.assert_same_structure(state, after)
    for gradient, of_tensor, expected in zip(gradients, state, updates):
        assert np.abs(expected).max() > 0
        (update,), _ = rule.update([gradient], [of_tensor])
        np.testing.assert_allclose(update, expected, rtol=1e-5)


@pytest.mark.parametrize("name", TENSOR_RULES)
def test_config_carries_the_meta_parameters(name):
    rule = TENSOR_RULES[name]()
    for variable in rule.weights:
        variable.assign_add(0.01 * tf.random.uniform(variable.shape))
    config = json.loads(json.dumps(rule.get_config()))
    copy = type(rule).from_config(config)
    assert copy.get_config() == config
    for ours, theirs in zip(run(copy, LAYOUTS[name]), run(rule, LAYOUTS[name])):
        np.testing.assert_array_equal(ours, theirs)


def test_averaging_cells_give_every_coordinate_their_mean():
    rule = averaging()
    (layers,) = rule.initial_state([BIAS])
    _, (layers,) = rule.update([tf.constant([1.0, -2.0, 0.1, 0.0, 30.0])], [layers])
    for hidden, _ in layers:
        spread = np.ptp(hidden, axis=1)
        assert spread[:2].max() == 0.0 and spread[2:].min() > 0.0
    # By hand, of the first layer: an LSTM without sharing, then the mean.
    alone = update_rules.CoordinatewiseLSTM((4, 3), zero_head=False, seed=3)
    ((hidden, _), _), _ = alone.update(
        tf.constant([1.0, -2.0, 0.1, 0.0, 30.0]), alone.initial_state(5)
    )[1]
    np.testing.assert_allclose(layers[0][0][:2, 0], np.mean(hidden[:2], axis=1), rtol=1e-5)
    np.testing.assert_allclose(layers[0][0][2:], hidden[2:], rtol=1e-5)


def test_a_kernel_sees_its_own_weights_and_no_other_kernel():
    rule = kernelwise()
    (whole,) = run(rule, [KERNEL], num_steps=1)
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(3, 3, 2, 4)).astype("float32")
    gradient[:, :, 1, 2] *= 100.0
    (changed,), _ = rule.update([tf.constant(gradient)], rule.initial_state([KERNEL]))
    is_other = np.any(np.abs(changed - whole[0]) > 1e-6, axis=(0, 1))
    assert is_other.sum() == 1 and is_other[1, 2]
    # One weight of a kernel moves all of its updates.
    gradient[0, 0, 1, 2] = 0.0
    (again,), _ = rule.update([tf.constant(gradient)], rule.initial_state([KERNEL]))
    assert np.abs(again - changed)[:, :, 1, 2].min() > 0


@pytest.mark.parametrize(
    "make_rule", [nested, interleaved, pytest.param(averaging, marks=pytest.mark.slow)]
)
def test_meta_gradient_equals_taping_the_unroll(make_rule):
    """The tape runs the rule as a whole, tensor by tensor; the identity runs it by parts."""
    problem, rule = conv_problem(), make_rule()
    parameters, (batches,) = episode(problem)
    separate = [rule.initial_state(problem.layout) for _ in range(2)]
    objective = objectives.loss_sum
    _, expected, ends, _ = taped(rule, problem, parameters, separate, batches, objective)
    state = initial_state(rule, problem.layout, 2)
    received, trajectory = tf.function(
        lambda: by_identity(rule, problem, parameters, state, batches, objective, chunk_size=72)
    )()
    np.testing.assert_allclose(trajectory.parameters, ends, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(received, expected):
        if theirs is not None:  # A derivative may be 0 by symmetry, and so rounding noise.
            np.testing.assert_allclose(
                ours, theirs, rtol=0, atol=1e-6 + 1e-5 * np.abs(theirs).max()
            )
    assert sum(b is not None and np.abs(b).max() > 1e-3 for b in expected) >= 6
    empty = [a for a, b in zip(received, expected) if b is None]
    assert len(empty) == (4 if make_rule is nested else 0)
    assert all(not np.any(a) for a in empty)


def test_nested_groups_are_the_same_rule_as_their_groups_in_one_list(tmp_path):
    layout = LAYOUTS["nested"]
    for inner, outer in zip(run(nested(), layout), run(grouped(), layout)):
        np.testing.assert_array_equal(inner, outer)
    parts = {tuple(p.indices): type(p.rule) for p in nested().parts(layout)}
    assert parts == {tuple(p.indices): type(p.rule) for p in grouped().parts(layout)}

    # In `fit`, and saved and loaded.
    l2l_tf.save(nested(), tmp_path / "rule")
    loaded = l2l_tf.load(tmp_path / "rule")
    assert l2l_tf.saving.fingerprint(loaded) == l2l_tf.saving.fingerprint(nested())
    ends = []
    for rule in (grouped(), nested(), loaded):
        keras.utils.set_random_seed(0)
        model = conv_net()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(l2l_tf.LearnedOptimizer(rule), loss)
        model.fit(conftest.image_data(), verbose=0, shuffle=False)
        ends.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_array_equal(ends[1], ends[0])
    np.testing.assert_array_equal(ends[2], ends[0])
    alone = tf.saved_model.load(str(tmp_path / "rule"))
    _, _, inner = alone.rules
    assert [p.decode() for p in inner.patterns.numpy()] == ["conv", ".*"]
    updates, _ = inner.rules[1].update(tf.ones([2]), inner.rules[1].initial_state(2))
    np.testing.assert_allclose(updates, lstm().update(tf.ones([2]), lstm().initial_state(2))[0])

    shared = lstm()
    with pytest.raises(ValueError, match="is, or has, the very same object"):
        GroupedRule([("x", shared), (".*", GroupedRule([("y", shared), (".*", lstm())]))])


@pytest.mark.slow
def test_random_coordinates_of_each_part_give_an_unbiased_meta_gradient():
    problem, rule = conv_problem(), grouped()
    parameters, (batches,) = episode(problem)
    state = initial_state(rule, problem.layout, 2)
    whole, trajectory = by_identity(rule, problem, parameters, state, batches, objectives.loss_sum)
    weights = conftest.loss_weights(objectives.loss_sum, trajectory.losses)

    @tf.function
    def part(seed):
        return meta_gradient(
            rule, problem.layout, trajectory, weights, backward_fraction=0.3, seed=seed
        )

    draws = [[g.numpy() for g in part(tf.constant([0, i]))] for i in range(60)]
    num_drawn = len(rule.rules[-1].trainable_variables)
    for index, exact in enumerate(whole):
        of_variable = np.stack([draw[index] for draw in draws])
        if index < len(whole) - num_drawn:  # all of the coordinates, each time
            np.testing.assert_allclose(of_variable[0], of_variable[-1], rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(of_variable[0], exact, rtol=1e-3, atol=1e-5)
            continue
        error = np.std(of_variable, axis=0, ddof=1) / np.sqrt(len(draws))
        assert error.max() > 0
        assert np.abs(np.mean(of_variable, axis=0) - exact)[error > 0].mean() < 3 * error.mean()


def test_meta_trainer_trains_all_groups_but_the_empty_one():
    rule, problem = grouped(), conv_problem()
    before = [w.numpy() for w in rule.weights]
    trainer = l2l_tf.MetaTrainer(rule, problem, 5, 10, backward_fraction=0.5)
    trainer.compile(optimizer=keras.optimizers.SGD(0.01))
    trainer.fit(trainer.dataset(0, 2), verbose=0)
    moved = [np.abs(w.numpy() - b).max() > 0 for w, b in zip(rule.weights, before)]
    num_empty = len(rule.rules[0].weights)
    assert not any(moved[:num_empty]) and all(moved[num_empty:])


def compiled(optimizer):
    keras.utils.set_random_seed(0)
    model = conv_net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return model


def fit(model):
    return model.fit(conftest.image_data(), epochs=1, verbose=0, shuffle=False).history["loss"][0]


def everything(model):
    optimizer = model.optimizer
    variables = [*model.variables, *optimizer.variables, *optimizer.rule.variables]
    return np.concatenate([v.numpy().ravel().astype("float64") for v in variables])


@pytest.mark.parametrize("cls", [l2l_tf.LearnedOptimizer, conftest.OneByOne])
def test_the_optimizer_runs_each_groups_rule(cls):
    rng = np.random.default_rng(0)
    layout = [("dense_kernel", (2, 5)), ("a_bias", (5,)), ("conv", (3, 3, 1, 2)), ("b_bias", ())]
    variables = [keras.Variable(np.zeros(shape), name=name) for name, shape in layout]
    rule, optimizer = grouped(), cls(grouped())
    optimizer.build(variables)
    state, expected = rule.initial_state(layout), [np.zeros(shape) for _, shape in layout]
    for _ in range(3):
        gradients = [tf.constant(rng.normal(size=shape), "float32") for _, shape in layout]
        updates, state = rule.update(gradients, state)
        expected = [e + u.numpy() for e, u in zip(expected, updates)]
        optimizer.apply(gradients, variables)
    for variable, value in zip(variables, expected):
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(variable, value, atol=1e-6)
    # A step of some of the variables alone moves their state, and no other.
    before = [leaf.numpy() for leaf in optimizer._state.leaves]
    optimizer.apply(gradients[1:3], variables[1:3])
    moved = {
        leaf.path.split("/")[0]
        for leaf, old in zip(optimizer._state.leaves, before)
        if np.abs(leaf.numpy() - old).max() > 0
    }
    assert moved == {"a_bias", "conv"}


def by_keras_file(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def by_weights_file(model, path):
    model.save_weights(path / "model.weights.h5")
    restored = another()
    restored.load_weights(path / "model.weights.h5")
    return restored


def by_checkpoint(model, path):
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(path / "checkpoint")
    restored = another()
    checkpoint = tf.train.Checkpoint(model=restored, optimizer=restored.optimizer)
    checkpoint.restore(saved).assert_consumed()
    return restored


def by_pickle(model, path):
    restored = compiled(pickle.loads(pickle.dumps(model.optimizer)))
    restored.set_weights(model.get_weights())
    return restored


def another():
    """With a rule of other weights: what is restored brings its own."""
    model = compiled(l2l_tf.LearnedOptimizer(grouped()))
    for variable in model.optimizer.rule.variables:
        variable.assign_add(tf.ones_like(variable))
    model.optimizer.build(model.trainable_variables)
    return model


def test_training_goes_on_bit_for_bit_however_it_was_saved(tmp_path):
    model = compiled(l2l_tf.LearnedOptimizer(grouped()))
    fit(model)
    ways = (by_keras_file, by_weights_file, by_checkpoint, by_pickle)
    restored = [way(model, tmp_path) for way in ways]
    fit(model)
    for copy in restored:
        fit(copy)
        np.testing.assert_array_equal(everything(copy), everything(model))


def test_a_saved_grouped_rule_and_tensorflow_alone(tmp_path):
    rule, path = grouped(), str(tmp_path / "rule")
    l2l_tf.save(l2l_tf.LearnedOptimizer(rule), path)
    loaded = l2l_tf.load(path)
    layout = LAYOUTS["grouped"]
    for ours, expected in zip(run(loaded, layout), run(rule, layout)):
        np.testing.assert_array_equal(ours, expected)
    assert l2l_tf.saving.fingerprint(loaded) == l2l_tf.saving.fingerprint(rule)

    program = f"""
import json, numpy, tensorflow as tf
m = tf.saved_model.load({path!r})
updates = []
for rule, shape in ((m.rules[1], [5]), (m.rules[1], [2, 3]), (m.rules[2], [3, 3, 2, 4])):
    state = rule.initial_state(shape)
    for _ in range(2):
        update, state = rule.update(tf.ones(shape), state)
    updates.append(update.numpy().tolist())
state = m.rules[3].initial_state(7)
print(json.dumps([[p.decode() for p in m.patterns.numpy()], updates]))
"""
    patterns, updates = conftest.in_tensorflow_alone(program)
    assert patterns == ["no such", "bias$", "conv", ".*"]
    for of_group, received in zip((rule.rules[1], rule.rules[1], rule.rules[2]), updates):
        shape = np.shape(received)
        state = of_group.initial_state([("tensor", shape)])
        for _ in range(2):
            (update,), state = of_group.update([tf.ones(shape)], state)
        np.testing.assert_allclose(received, update, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("make_rule", [grouped, averaging])
@pytest.mark.parametrize("how", ["bfloat16", "jit", "mirrored", "mixed_float16", "frozen"])
def test_as_every_rule_in_the_optimizer(make_rule, how):
    if how == "mixed_float16":
        keras.config.set_dtype_policy(how)
    strategy = tf.distribute.get_strategy()
    if how == "mirrored":
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    try:
        with strategy.scope():
            dtype = "bfloat16" if how == "bfloat16" else "float32"
            model = compiled(l2l_tf.LearnedOptimizer(make_rule(), state_dtype=dtype))
        if how == "jit":
            model.compile(model.optimizer, loss=model.loss, jit_compile=True)
        if how == "frozen":
            fit(model)
            model.layers[0].trainable = False
            model.compile(model.optimizer, loss=model.loss)
        frozen = model.layers[0].get_weights()
        loss = fit(model)
    finally:
        keras.config.set_dtype_policy("float32")
    plain = compiled(l2l_tf.LearnedOptimizer(make_rule()))
    if how == "frozen":
        np.testing.assert_array_equal(model.layers[0].get_weights()[0], frozen[0])
        return
    np.testing.assert_allclose(loss, fit(plain), rtol=0.05 if "16" in how else 1e-4)
    for variable in model.optimizer.variables:
        replicas = getattr(variable.value, "values", [variable.value])
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replica, replicas[0])


@keras.saving.register_keras_serializable("test_grouped_rules")
def is_kernel(name, shape):
    return len(shape) == 4


def test_a_function_as_pattern(tmp_path):
    rule = GroupedRule([(is_kernel, kernelwise()), (".*", lstm())])
    assert [part.indices for part in rule.parts([BIAS, KERNEL])] == [(1,), (0,)]
    l2l_tf.save(rule, tmp_path / "rule")
    assert l2l_tf.load(tmp_path / "rule").patterns == [is_kernel, ".*"]
    assert not hasattr(tf.saved_model.load(str(tmp_path / "rule")), "patterns")

    nameless = GroupedRule([(lambda name, shape: True, lstm())])
    with pytest.raises(ValueError, match="not registered.*or use a regular expression"):
        l2l_tf.save(nameless, tmp_path / "other")
    assert not (tmp_path / "other").exists()


class Global(UpdateRule):
    coupling = "global"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GroupedRule([]), "one at least"),
        (lambda: GroupedRule(5), r"`groups` must be a list of .*groups=5"),
        (lambda: GroupedRule([lstm()]), r"list of \(pattern, rule\)"),
        (lambda: GroupedRule([("(", lstm())]), r"regular expression. Received: '\('"),
        (lambda: GroupedRule([(3, lstm())]), "Received: 3"),
        (lambda: GroupedRule([("a", type(lstm()))]), "must be an UpdateRule. Received: <class"),
        (lambda: GroupedRule([("a", "lstm")]), "must be an UpdateRule. Received: 'lstm'"),
        (Global, "Global.coupling must be one of .* Received: 'global'"),
        (lambda: GroupedRule([("a", r := lstm()), ("b", r)]), "Join their patterns"),
        (
            lambda: GroupedRule([("a", lstm()), ("b", lstm(dtype="float64"))]),
            "one dtype. Received: float32, float64",
        ),
        (
            lambda: GroupedRule([("bias", lstm())]).parts([BIAS, KERNEL]),
            r"matches the variable 'net/conv2d/kernel'.*'\.\*' as the last",
        ),
        (
            lambda: kernelwise().initial_state([BIAS]),
            r"shape \(3, 3, in, out\). Received: net/dense/bias of shape \(5,\).*GroupedRule",
        ),
        (lambda: update_rules.KernelwiseLSTM((3,)), r"`kernel_shape`.*\(5, 5\)"),
        (lambda: update_rules.KernelwiseLSTM(p=0), "`p` must be .* above 0"),
        (lambda: update_rules.GlobalAveragingLSTM(num_averaging=0), "num_averaging=0"),
        (lambda: update_rules.GlobalAveragingLSTM((20, 4)), r"num_averaging=5, layers=\(20, 4\)"),
        (
            lambda: l2l_tf.MetaTrainer(averaging(), conv_problem(), 5, 5, backward_fraction=0.5),
            "coupling='tensor'",
        ),
        (lambda: new_rule("lstm", (4,), 0, "lstm", [BIAS]), "Received: .'net/dense/bias'."),
        (
            lambda: new_rule(
                "lstm", (4,), 0, "kernelwise", [KERNEL, ("conv/kernel", (1, 1, 2, 2))]
            ),
            "of one size",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_variable_without_a_rule_is_named_before_anything_is_built():
    optimizer = l2l_tf.LearnedOptimizer(GroupedRule([("bias", lstm())]))
    with pytest.raises(ValueError, match="No pattern .* matches the variable 'Variable"):
        optimizer.build([tf.Variable([1.0])])
    assert not optimizer.built


@keras.saving.register_keras_serializable("test_grouped_rules")
class NeedsAStaticShape(TensorNormRule):
    def initial_state(self, layout):
        return [tf.zeros([int(np.prod(shape))]) for _, shape in layout]


def test_a_rule_that_cannot_be_exported_says_what_it_should_do(tmp_path):
    with pytest.raises(ValueError, match="NeedsAStaticShape cannot be saved.*int32 vector"):
        l2l_tf.save(NeedsAStaticShape(), tmp_path / "rule")
    assert not list(tmp_path.iterdir())


def test_a_convolutions_rule_is_found_by_the_layers_name_alone():
    names = ["conv_net/conv2d/kernel", "conv_net/conv2d/bias", "conv_net/dense/kernel"]
    layout = [(name, (3, 3, 1, 1)) for name in names]
    assert [p.indices for p in new_rule("lstm", (4,), 0, "lstm", layout).parts(layout)] == [
        (0, 1),
        (2,),
    ]
    by_kernel = new_rule("averaging", (8,), 0, "kernelwise", layout)
    assert [p.indices for p in by_kernel.parts(layout)] == [(0,), (1, 2)]
    assert all(re.compile(pattern) for pattern in by_kernel.patterns)
