"""compare: honest curves on a model of one's own, in one line."""

from l2l_tf.evaluation.evaluate import evaluate
from l2l_tf.evaluation.report import check_directory
from l2l_tf.problems import KerasProblem


def compare(build_model, dataset, loss, rules, heldout=None, output_dir=None, **kwargs):
    """Trains fresh copies of a Keras model with learned rules, tuned baselines, Keras optimizers.

    Each copy is trained as ``fit`` would train it. Prints the table of ``evaluate``; with
    `output_dir`, also writes ``results.json`` and ``curves.png`` there.

    Args:
        build_model, dataset, loss, heldout: as of ``l2l_tf.problems.KerasProblem``.
        rules: as `optimizers` of ``evaluate``: a dict of name → rule or Keras optimizer, or a list
            of rules, shipped ones' names, directories and Keras optimizers.
        output_dir: directory to write, or None.
        **kwargs: of ``evaluate``: `baselines`, `num_steps`, `num_seeds`, ….

    Returns:
        The ``Result``.

    >>> import keras, numpy as np, tensorflow as tf, l2l_tf
    >>> data = tf.data.Dataset.from_tensor_slices((np.ones([32, 4]), np.ones([32, 1]))).batch(8)
    >>> result = compare(
    ...     lambda: keras.Sequential([keras.Input([4]), keras.layers.Dense(1)]), data, "mse",
    ...     {"momentum 0.1": l2l_tf.update_rules.Momentum(0.1)}, baselines=["sgd"],
    ...     num_steps=5, num_seeds=2)  # doctest: +ELLIPSIS
    optimizer ...
    """
    if output_dir is not None:
        output_dir = check_directory(output_dir, "output_dir")  # now, and not when all is computed
    result = evaluate(KerasProblem(build_model, dataset, loss, heldout), rules, **kwargs)
    print(result.table())
    if output_dir is not None:
        result.save(output_dir)
    return result
