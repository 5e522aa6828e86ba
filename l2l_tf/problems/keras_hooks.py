"""What problems need of Keras and TensorFlow that has no public name; and what happens without it.

Each is looked up when it is used: a version that has renamed it costs what the function says.
"""

import contextlib
import random
import threading

import tensorflow as tf

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
