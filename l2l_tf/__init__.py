"""l2l_tf: learned optimizers for Keras.

After "Learning to learn by gradient descent by gradient descent" (Andrychowicz et al., 2016).
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "l2l_tf needs Keras' TensorFlow backend. "
        f"Received: the {keras.backend.backend()!r} backend. Set KERAS_BACKEND=tensorflow in the "
        "environment before Keras is imported."
    )

from l2l_tf import problems, update_rules
from l2l_tf.catalog import card, pretrained_names
from l2l_tf.evaluation.compare import compare
from l2l_tf.evaluation.evaluate import evaluate
from l2l_tf.meta_training.trainer import MetaTrainer
from l2l_tf.optimizer import LearnedOptimizer
from l2l_tf.saving import load, save
from l2l_tf.version import __version__

__all__ = [
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
