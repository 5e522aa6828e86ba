"""The problems' names on the command line, and what they stand for.

Plain text: ``--help`` reads this file alone, and answers without loading TensorFlow.
"""

NAMES = {
    "cifar10": "CIFAR-10, a convolutional net (the paper's section 3.3)",
    "cifar2": "the same, labels 0 and 1 alone",
    "cifar5": "the same, labels 0 to 4",
    "cifar5-sub": "the same, labels 5 to 9, which cifar2 and cifar5 leave out",
    "digits": "scikit-learn's digits, MLP 64-20-10",
    "general": "some fifty small problems of many kinds, to meta-train a rule for any model",
    "lasso": "random functions, convex and not smooth",
    "mnist": "MNIST, MLP 784-20-10 (the paper's section 3.2)",
    "mnist-40-units": "the same, 40 hidden units",
    "mnist-relu": "the same, ReLU",
    "mnist-two-layers": "the same, two hidden layers",
    "neural_style": "an image in the style of a painting (the paper's section 3.4)",
    "quadratic": "random quadratics of 10 dimensions (the paper's section 3.1)",
    "rastrigin": "random functions with many minima",
    "simple": "x^2",
    "simple-multi": "x_0^2 + x_1^2, of two variables",
}
OTHER = {
    "quadratic+2*rastrigin": "an ensemble: their sum, each with a weight or without",
    "digits|2*quadratic": "a mixture: each episode is of one of them, drawn by its weight",
    "package.module:function": "a function that returns an l2l_tf.problems.Problem or Mixture",
}
HELP = "\n".join(f"{name}: {what}" for name, what in {**NAMES, **OTHER}.items())
