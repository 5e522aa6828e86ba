"""Each way to save a model with a LearnedOptimizer resumes training bit for bit."""

import copy
import json
import pickle
import subprocess
import sys
import warnings
import zipfile

import conftest
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import l2l_tf
from l2l_tf import hooks, update_rules


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


def by_keras_file_with_the_weights_in_its_config(model, path):
    """As without Keras' private attribute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "writes_keras_file", lambda: False)
        model.save(path / "model.keras")
    assert '"weights": "npz:' in config_in(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def by_keras_file_written_before(model, path):
    """With φ in the config too, as lists, as every file was."""
    with pytest.MonkeyPatch.context() as patch:
        config = model.optimizer.rule.get_config()
        config["weights"] = [w.numpy().tolist() for w in model.optimizer.rule.weights]
        patch.setattr(model.optimizer.rule, "get_config", lambda: dict(config))
        patch.setattr(hooks, "writes_keras_file", lambda: False)
        model.save(path / "model.keras")
    assert '"weights": [[' in config_in(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def config_in(path):
    with zipfile.ZipFile(path) as file:
        return file.read("config.json").decode()


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
        by_keras_file_with_the_weights_in_its_config,
        by_keras_file_written_before,
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


@pytest.mark.parametrize("make_rule", [lstm, lambda: update_rules.GroupedRule([("", lstm())])])
def test_the_config_in_a_keras_file_leaves_the_rules_weights_to_the_weights(make_rule, tmp_path):
    model = new_model(make_rule())
    model.save(tmp_path / "model.keras")
    assert len(config_in(tmp_path / "model.keras")) < 6000
    assert "in the file's weights" in config_in(tmp_path / "model.keras")
    # Elsewhere a config is all there is.
    for config in (model.optimizer.get_config(), model.to_json()):
        assert "in the file's weights" not in json.dumps(config)


def test_a_process_without_l2l_tf_gets_a_message_that_can_be_read(tmp_path):
    model = new_model(update_rules.CoordinatewiseLSTM((20, 20)))
    model.save(tmp_path / "model.keras")
    program = f"import keras; keras.models.load_model({str(tmp_path / 'model.keras')!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    message = done.stderr[done.stderr.rindex("TypeError: ") :]
    assert "LearnedOptimizer" in message and len(message) < 2000


def test_a_keras_file_that_lacks_the_rules_weights_trains_nothing_in_silence(tmp_path):
    model = new_model()
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        file.extractall(tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "a") as weights:
        del weights["optimizer/rule"]
    with zipfile.ZipFile(tmp_path / "damaged.keras", "w") as file:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            file.write(tmp_path / name, name)
    with pytest.warns(UserWarning, match="The file holds no update rule for"):
        damaged = keras.models.load_model(tmp_path / "damaged.keras")
    with pytest.raises(ValueError, match="lacks the weights of its update rule"):
        fit(damaged)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
)
def test_one_rule_in_two_optimizers_of_a_model_is_one_again(tmp_path):
    rule = lstm()
    groups = keras.src.optimizers.multi_optimizer.OptimizerMap(
        l2l_tf.LearnedOptimizer(rule, name="rest")
    )
    groups[".*bias"] = l2l_tf.LearnedOptimizer(rule, 0.5, name="biases")
    model = new_model()
    model.compile(keras.optimizers.MultiOptimizer(groups), loss=model.loss)
    fit(model)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        restored = keras.models.load_model(tmp_path / "model.keras")
    ours, others = [optimizer.rule for optimizer in restored.optimizer.optimizers]
    assert ours is others
    np.testing.assert_array_equal(ours.weights[0], rule.weights[0])
    fit(model)
    fit(restored)
    np.testing.assert_array_equal(restored.get_weights()[0], model.get_weights()[0])
    # Another load makes another.
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.optimizers[0].rule is not ours


def test_an_h5_file_brings_the_rule_and_not_its_state(tmp_path):
    model = new_model()
    fit(model)
    model.save(tmp_path / "model.h5")
    restored = keras.models.load_model(tmp_path / "model.h5")
    np.testing.assert_array_equal(restored.get_weights()[0], model.get_weights()[0])
    for ours, saved in zip(restored.optimizer.rule.weights, model.optimizer.rule.weights):
        np.testing.assert_array_equal(ours, saved)
    assert int(restored.optimizer.iterations) == 0 and not restored.optimizer.built
    fit(restored)
    fresh = with_optimizer(model, l2l_tf.LearnedOptimizer.from_config(model.optimizer.get_config()))
    fit(fresh)
    np.testing.assert_array_equal(everything(restored), everything(fresh))
