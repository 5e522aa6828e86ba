"""What we need of Keras and TensorFlow that has no public name; and what happens without it.

Each is looked up when it is used: a version that has renamed it costs what is said here. First what
optimizers and rules need, then what evaluation and compilation do, then problems.
"""

import contextlib
import random
import threading

import keras
import tensorflow as tf


class AllVariablesOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that takes a step of all variables at once, and decays them itself.

    Keras' `update_step` sees one variable. A subclass implements it, for a Keras without the hook,
    and for one replica ``_arguments_of_step(variables)`` and
    ``_step(*arguments, gradients, learning_rate)``.
    """

    @tf.autograph.experimental.do_not_convert  # in a user's tf.function: it takes seconds
    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        """Keras calls it after the gradients of all replicas are summed."""
        gradients, variables = zip(*grads_and_vars)
        # The first variable stands for the replica that the step is for.
        distribution.extended.update(
            variables[0],
            lambda _, *args: self._step(*args),
            args=(*self._arguments_of_step(variables), list(gradients), learning_rate),
            group=False,
        )

    def _apply_weight_decay(self, variables):
        """Nothing: weight decay is a part of the step, so that a skipped step skips it."""

    def _check_weight_decay(self):
        """Refuses weight decay where Keras would apply it too, for lack of the method above."""
        if self.weight_decay and not hasattr(keras.optimizers.Optimizer, "_apply_weight_decay"):
            raise NotImplementedError(
                f"This Keras ({keras.__version__}) applies weight decay in another way than this "
                "l2l_tf knows. Expected: weight_decay=None, or an older Keras."
            )

    def _index_of(self, variable):
        """A variable's place among those that the optimizer was built for."""
        return self._get_variable_index(variable)

    def _is_decayed(self, variable):
        """Whether weight decay takes a variable. Without the hook, any is."""
        return getattr(self, "_use_weight_decay", lambda _: True)(variable)

    def _is_overwritten(self, variable):
        """Whether a variable's gradient is its next value (of float8). Without the hook, none's."""
        return getattr(self, "_overwrite_variable_with_gradient", lambda _: False)(variable)


def copy_weight_decay(optimizer, copy):
    """Has a copy of a Keras optimizer leave out the same variables: Keras' configs lack that.

    Without the hook, a copy decays all variables.

    Raises:
        ValueError: they are variables of one model.
    """
    if getattr(optimizer, "_exclude_from_weight_decay", None):
        raise ValueError(
            f"Optimizer {optimizer.name!r} excludes variables of one model from weight decay, and "
            "each optimizee has others. Name them instead: optimizer."
            "exclude_from_weight_decay(var_names=[...])."
        )
    if hasattr(optimizer, "_exclude_from_weight_decay_pattern"):
        copy._exclude_from_weight_decay_pattern = optimizer._exclude_from_weight_decay_pattern


def keep_in_checkpoints(layer, name, part):
    """Has ``tf.train.Checkpoint`` save what a Keras layer keeps in a list, which Keras leaves out.

    Without the hook, such a checkpoint lacks it, and TensorFlow says so when it is restored.
    """
    if hasattr(layer, "_track_trackable"):
        layer._track_trackable(part, name, overwrite=True)


def writes_keras_file():
    """Whether Keras is writing a ``.keras`` file: a config, and the weights of all beside it.

    Without the hook, the config has a rule's weights too, and a message of Keras' that quotes the
    config is a long one.
    """
    try:
        from keras.src.backend.common import global_state
    except ImportError:
        return False
    return global_state.get_global_attribute("shared_objects/id_to_config_map") is not None


def inputs_of(dataset):
    """The datasets that a dataset is made from. Without the hook, it looks like made from none."""
    return getattr(dataset, "_inputs", list)()


def watches_operations():
    """Whether a debugging aid of TensorFlow adds to the operations that this thread makes.

    Without the hook, such an aid fails as it does in any program of XLA's.
    """
    try:
        from tensorflow.python.eager import context

        return bool(context.context().op_callbacks)
    except (ImportError, AttributeError):
        return False


def xla_compiles_this():
    """Whether what is traced here becomes a part of a program that XLA compiles.

    Without the hook, the answer is yes: so nothing is run that XLA could not take.
    """
    try:
        from tensorflow.python.ops import control_flow_util

        return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
    except (ImportError, AttributeError):
        return True


# A method is replaced while functions are inlined: by one thread at a time, so that each puts back
# what it has found.
_inlining = threading.RLock()

# Of Keras' state of a thread, what users set; the rest is scopes of calls that are under way.
_SETTINGS = (
    "custom_objects_scope_dict",
    "distribution",
    "dtype_policy",
    "flash_attention",
    "interactive_logging",
    "safe_mode_saving",
    "use_legacy_config",
)


def _thread_state():
    """Keras' state of this thread, a dict.

    Without it, models are built with Keras' default settings where another thread builds them.
    """
    try:
        from keras.src.backend.common import global_state

        return vars(global_state.GLOBAL_STATE_TRACKER)
    except (ImportError, AttributeError, TypeError):
        return {}


def thread_settings():
    """The settings of Keras that hold in this thread: dtype policy, custom objects, ….

    ``keras.saving.custom_object_scope`` and ``keras.config`` set them for their thread alone, and
    ``tf.data`` builds models in others.
    """
    state = _thread_state()
    return {name: state[name] for name in _SETTINGS if name in state}


@contextlib.contextmanager
def settings_in_this_thread(settings):
    """Within, Keras has these settings."""
    state = _thread_state()
    before = {name: state[name] for name in _SETTINGS if name in state}
    try:
        for name in before:
            del state[name]
        state.update(settings)
        yield
    finally:
        state = _thread_state()  # anew: `clear_session` may have replaced it
        for name in _SETTINGS:
            state.pop(name, None)
        state.update(before)


@contextlib.contextmanager
def seed_generator(generator):
    """Within, ``keras.random`` draws by this generator where it is given no seed.

    None: by a new one. Without the hook, such draws are not functions of our seeds.
    """
    state = _thread_state()
    before = state.get("global_seed_generator")
    state["global_seed_generator"] = generator
    try:
        yield
    finally:
        _thread_state()["global_seed_generator"] = before  # anew: see above


def _tensorflow_context():
    """The object with the seeds of eager ``tf.random``.

    Without it, weights that tf.random draws are found not to be a function of the seed, and the
    problem is refused.
    """
    try:
        from tensorflow.python.eager import context

        return context.context() if hasattr(context.context(), "_seed") else None
    except (ImportError, AttributeError):
        return None


@contextlib.contextmanager
def seeded_tensorflow(seed):
    """Within, eager tf.random draws by `seed`; afterwards it goes on as before."""
    context = _tensorflow_context()
    if context is None:
        yield
        return
    before = context._seed, getattr(context, "_rng", None)  # none before the first seed
    context._seed, context._rng = seed, random.Random(seed)
    try:
        yield
    finally:
        context._seed, context._rng = before


def tensorflow_draws():
    """Something that changes whenever eager tf.random draws, within ``seeded_tensorflow``."""
    generator = getattr(_tensorflow_context(), "_rng", None)
    return None if generator is None else generator.getstate()


def forget_tensorflow_draws():
    """Makes each operation of tf.random start anew from its seeds."""
    context = _tensorflow_context()
    if hasattr(context, "clear_kernel_cache"):
        context.clear_kernel_cache()


@contextlib.contextmanager
def functions_inlined():
    """Within, and in this thread, calling a ``tf.function`` runs its Python code in its place.

    What a function read from variables when it was traced, it reads from there forever; inlined, it
    takes the values that are substituted for them. Without the hook nothing is inlined, and models
    with such functions can be evaluated but not meta-trained on.
    """
    try:
        from tensorflow.python.autograph.core import ag_ctx, converter
        from tensorflow.python.autograph.impl import api
    except ImportError:
        yield
        return
    cls, thread = type(tf.function(lambda: None)), threading.get_ident()

    def inlined(function, *args, **kwargs):
        if threading.get_ident() != thread:
            return call(function, *args, **kwargs)
        # With Python's control flow on tensors made TensorFlow's, as the function has it.
        with ag_ctx.ControlStatusCtx(ag_ctx.Status.ENABLED, converter.STANDARD_OPTIONS) as context:
            return api.tf_convert(function.python_function, context)(*args, **kwargs)

    with _inlining:
        call = cls.__call__
        cls.__call__ = inlined
        try:
            yield
        finally:
            cls.__call__ = call


def resumed_epoch(model):
    """The epoch at which ``BackupAndRestore`` lets a training go on; 0 or None for none.

    Without it, that callback would restore the weights, and train all epochs again.
    """
    return getattr(model, "_initial_epoch", None)


@contextlib.contextmanager
def on_one_replica():
    """Within, no ``tf.distribute`` strategy is seen.

    Keras divides a loss by the number of replicas, so that their gradients add up to that of one
    batch; but here each replica has optimizees, and losses, of its own.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        yield
        return
    from tensorflow.python.distribute import distribute_lib

    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()
