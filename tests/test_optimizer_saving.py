"""Each way to save a model with a LearnedOptimizer resumes training bit for bit."""

import copy
import pickle

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import update_rules


def lstm(seed=1):
    return update_rules.CoordinatewiseLSTM((4,), zero_head=False, seed=seed)


def new_model(rule=None, **kwargs):
    keras.utils.set_random_seed(0)
    model = conftest.mlp()
    kwargs = {"weight_decay": 0.1, "learning_rate": 0.5, "use_ema": True, **kwargs}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = l2l_tf.LearnedOptimizer(rule or lstm(), **kwargs)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer=optimizer, loss=loss)
    return model


def fit(model, callbacks=None, epochs=1):
    data = conftest.image_data()
    return model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)


def everything(model):
    optimizer = model.optimizer
    variables = [*model.variables, *optimizer.variables, *optimizer.rule.variables]
    return np.concatenate([v.numpy().ravel().astype("float64") for v in variables])


def by_keras_file(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def by_weights_file(model, path):
    model.save_weights(path / "model.weights.h5")
    # Another rule's weights: the file brings the saved one's.
    restored = new_model(lstm(seed=2))
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(path / "model.weights.h5")
    return restored


def by_checkpoint(model, path):
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(path / "checkpoint")
    restored = new_model(lstm(seed=2))
    restored.optimizer.build(restored.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=restored, optimizer=restored.optimizer)
    checkpoint.restore(saved).assert_consumed()
    return restored


def by_checkpoint_before_the_optimizer_is_built(model, path):
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(path / "checkpoint")
    restored = new_model(lstm(seed=2))
    tf.train.Checkpoint(model=restored, optimizer=restored.optimizer).restore(saved)
    return restored


def by_pickle_of_the_model(model, path):
    return pickle.loads(pickle.dumps(model))


def by_deepcopy_of_the_model(model, path):
    return copy.deepcopy(model)


def with_optimizer(model, optimizer):
    restored = new_model()
    restored.set_weights(model.get_weights())
    restored.compile(optimizer=optimizer, loss=model.loss)
    return restored


def by_pickle_of_the_optimizer(model, path):
    return with_optimizer(model, pickle.loads(pickle.dumps(model.optimizer)))


def by_deepcopy_of_the_optimizer(model, path):
    return with_optimizer(model, copy.deepcopy(model.optimizer))


def by_copies_of_copies_that_were_never_built(model, path):
    twice = copy.deepcopy(pickle.loads(pickle.dumps(model.optimizer)))
    return by_keras_file(with_optimizer(model, twice), path)


@pytest.mark.parametrize(
    "save_and_restore",
    [
        by_keras_file,
        by_weights_file,
        by_checkpoint,
        by_checkpoint_before_the_optimizer_is_built,
        by_pickle_of_the_model,
        by_deepcopy_of_the_model,
        by_pickle_of_the_optimizer,
        by_deepcopy_of_the_optimizer,
        by_copies_of_copies_that_were_never_built,
    ],
)
def test_training_goes_on_bit_for_bit(save_and_restore, tmp_path):
    model = new_model()
    fit(model)
    restored = save_and_restore(model, tmp_path)
    fit(model)
    fit(restored)
    assert int(model.optimizer.iterations) == 12
    np.testing.assert_array_equal(everything(restored), everything(model))


class Interrupted(Exception):
    pass


class InterruptAt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise Interrupted


def test_backup_and_restore(tmp_path):
    whole = new_model()
    fit(whole, epochs=2)
    with pytest.raises(Interrupted):
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        fit(new_model(), callbacks=[backup, InterruptAt()], epochs=2)
    resumed = new_model()
    fit(resumed, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)], epochs=2)
    np.testing.assert_array_equal(everything(resumed), everything(whole))


def test_a_config_carries_the_trained_rule():
    optimizer = l2l_tf.LearnedOptimizer(lstm(), learning_rate=0.5, state_dtype="bfloat16")
    optimizer.rule.weights[0].assign_add(tf.ones_like(optimizer.rule.weights[0]))
    again = l2l_tf.LearnedOptimizer.from_config(optimizer.get_config())
    np.testing.assert_array_equal(again.rule.weights[0], optimizer.rule.weights[0])
    assert again.get_config() == optimizer.get_config()


def test_by_path_and_saved_again(tmp_path):
    l2l_tf.save(lstm(), tmp_path / "rule")
    optimizer = l2l_tf.LearnedOptimizer(tmp_path / "rule")
    l2l_tf.save(optimizer, tmp_path / "again")
    again = l2l_tf.LearnedOptimizer(str(tmp_path / "again"))
    np.testing.assert_array_equal(again.rule.weights[0], lstm().weights[0])


def test_another_optimizers_weights_file_leaves_the_rule_and_says_so(tmp_path):
    adam = new_model()
    adam.compile("adam", loss=adam.loss)
    fit(adam)
    adam.save_weights(tmp_path / "adam.weights.h5")
    model = new_model()
    model.optimizer.build(model.trainable_variables)
    before = everything(model)[-50:]
    with pytest.warns(UserWarning) as warned:
        model.load_weights(tmp_path / "adam.weights.h5")
    messages = " ".join(str(w.message) for w in warned)
    assert "does not fit optimizer 'learned_optimizer'" in messages
    assert "The file holds no update rule" in messages
    np.testing.assert_array_equal(everything(model)[-50:], before)
    np.testing.assert_array_equal(model.get_weights()[0], adam.get_weights()[0])


def test_a_pickled_optimizer_refuses_another_model():
    model = new_model()
    fit(model)
    restored = pickle.loads(pickle.dumps(model.optimizer))
    with pytest.raises(ValueError, match="built for other variables"):
        restored.build(model.trainable_variables[:2])
    assert not restored.built
    restored.build(model.trainable_variables)
    for ours, theirs in zip(restored.variables, model.optimizer.variables):
        np.testing.assert_array_equal(ours, theirs)
