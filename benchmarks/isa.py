"""Another processor on this one: ``--isa=avx2``, as if there were nothing beyond AVX2.

Each of the libraries reads its environment when it is imported: this module comes before them.
"""

import os
import sys

from absl import flags

ENVIRONMENTS = {
    "native": {},
    "avx2": {
        "L2L_TF_MARCH": "x86-64-v3",  # the native kernels
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # TensorFlow's large products
    },
}
ISA = flags.DEFINE_enum(
    "isa", "native", list(ENVIRONMENTS), "Instructions to use: the processor's, or up to AVX2."
)


def set_environment():
    """To be called before TensorFlow is imported."""
    flags.FLAGS(sys.argv, known_only=True)  # all flags are parsed once the rest are defined
    for name, value in ENVIRONMENTS[ISA.value].items():
        before = os.environ.get(name, "") if name == "XLA_FLAGS" else ""
        os.environ[name] = f"{before} {value}".strip()


def description():
    """A sentence for beside a table."""
    settings = " ".join(f"{k}={v}" for k, v in ENVIRONMENTS[ISA.value].items())
    return f"Nothing beyond AVX2 ({settings})." if settings else "The processor's instructions."
