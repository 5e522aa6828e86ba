"""Problems that are functions in closed form: random ones, new each episode, and x²."""

import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.problems import base


class FunctionProblem(base.Problem):
    """A random function of one vector θ; the batch of an episode is its coefficients.

    Subclasses implement ``sample_coefficients(seed)`` and ``loss(theta, coefficients)``. The two
    sides draw from the same distribution, with seeds that never meet.
    """

    vectorized = True

    def __init__(self, num_dimensions, initial_scale):
        self.num_dimensions = arguments.integer("num_dimensions", num_dimensions, 1)
        self.initial_scale = arguments.real("initial_scale", initial_scale, minimum=0)
        self.layout = [("theta", (self.num_dimensions,))]

    def sample_coefficients(self, seed):
        raise NotImplementedError

    def loss(self, theta, coefficients):
        raise NotImplementedError

    def sample_parameters(self, seed):
        return [self.initial_scale * tf.random.stateless_normal([self.num_dimensions], seed)]

    def batches(self, side, seed, num_batches):
        coefficients = self.sample_coefficients(base.fold_in(seed, base.check_side(side)))
        return tf.data.Dataset.from_tensors(coefficients).repeat(num_batches)

    def loss_and_gradients(self, parameters, batch):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            loss = self.loss(parameters[0], batch)
        return loss, tape.gradient(loss, parameters)

    def _normal(self, seed, *shapes):
        return tuple(
            tf.random.stateless_normal(shape, base.fold_in(seed, index))
            for index, shape in enumerate(shapes)
        )


class Quadratic(FunctionProblem):
    """f(θ) = ‖Wθ - y‖², with W and y drawn N(0, 1): section 3.1 of the 2016 paper.

    θ_0 is drawn N(0, 0.01²), as in DeepMind's code.

    Args:
        num_dimensions: of θ and y.

    >>> problem = Quadratic()
    >>> batch = next(iter(problem.batches("train", seed=[0, 0], num_batches=1)))
    >>> loss, gradients = problem.loss_and_gradients(problem.sample_parameters([0, 1]), batch)
    >>> gradients[0].shape
    TensorShape([10])
    """

    name = "quadratic"

    def __init__(self, num_dimensions=10):
        super().__init__(num_dimensions, initial_scale=0.01)

    def sample_coefficients(self, seed):
        n = self.num_dimensions
        return self._normal(seed, [n, n], [n])

    def loss(self, theta, coefficients):
        w, y = coefficients
        return tf.reduce_sum(tf.square(tf.linalg.matvec(w, theta) - y))


class Lasso(FunctionProblem):
    """f(θ) = ½‖Aθ - b‖² + λ‖θ‖₁, with A [5, 10] and b drawn N(0, 1), λ = 0.005.

    A convex, non-smooth test function of Chen et al. 2022, "Learning to optimize: a primer and a
    benchmark", section 4. θ_0 is drawn N(0, 1).
    """

    name = "lasso"

    def __init__(self, num_dimensions=10, num_observations=5, regularization=0.005):
        super().__init__(num_dimensions, initial_scale=1.0)
        self.num_observations = arguments.integer("num_observations", num_observations, 1)
        self.regularization = arguments.real("regularization", regularization, minimum=0)

    def sample_coefficients(self, seed):
        m, n = self.num_observations, self.num_dimensions
        return self._normal(seed, [m, n], [m])

    def loss(self, theta, coefficients):
        a, b = coefficients
        residual = tf.linalg.matvec(a, theta) - b
        penalty = self.regularization * tf.reduce_sum(tf.abs(theta))
        return 0.5 * tf.reduce_sum(tf.square(residual)) + penalty


class Rastrigin(FunctionProblem):
    """f(θ) = ½‖Aθ - b‖² - α cᵀcos(2πθ) + αn, with A, b, c drawn N(0, 1), α = 10.

    A non-convex test function of Chen et al. 2022 (see ``Lasso``). θ_0 is drawn N(0, 1).
    """

    name = "rastrigin"

    def __init__(self, num_dimensions=2, amplitude=10.0):
        super().__init__(num_dimensions, initial_scale=1.0)
        self.amplitude = arguments.real("amplitude", amplitude, minimum=0)

    def sample_coefficients(self, seed):
        n = self.num_dimensions
        return self._normal(seed, [n, n], [n], [n])

    def loss(self, theta, coefficients):
        a, b, c = coefficients
        residual = tf.linalg.matvec(a, theta) - b
        waves = tf.reduce_sum(c * tf.cos(2.0 * 3.141592653589793 * theta))
        bowl = 0.5 * tf.reduce_sum(tf.square(residual))
        return bowl + self.amplitude * (self.num_dimensions - waves)


class Simple(base.Problem):
    """f(x) = Σ_i x_i²: ``simple`` and ``simple_multi_optimizer`` of DeepMind's code.

    To try a rule out, or one rule for each variable. Each x_i is a scalar variable of its own. It
    starts near 1, drawn N(1, 0.1²): in DeepMind's code at 1, but then every episode were the same.
    The function has nothing random, so a batch is a 0 that stands for no data.

    Args:
        num_variables: 1 is "simple" on the command line, 2 is "simple-multi".

    >>> Simple().layout, Simple(2).layout
    ([('x', ())], [('x_0', ()), ('x_1', ())])
    """

    vectorized = True

    def __init__(self, num_variables=1):
        arguments.integer("num_variables", num_variables, 1)
        self.name = "simple" if num_variables == 1 else "simple-multi"
        names = ["x"] if num_variables == 1 else [f"x_{i}" for i in range(num_variables)]
        self.layout = [(name, ()) for name in names]

    def sample_parameters(self, seed):
        starts = 1.0 + 0.1 * tf.random.stateless_normal([len(self.layout)], seed)
        return tf.unstack(starts)

    def batches(self, side, seed, num_batches):
        base.check_side(side)
        return tf.data.Dataset.from_tensors(tf.zeros([])).repeat(num_batches)

    def loss_and_gradients(self, parameters, batch):
        return tf.add_n([tf.square(x) for x in parameters]), [2.0 * x for x in parameters]
