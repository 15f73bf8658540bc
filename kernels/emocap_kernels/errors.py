"""Everything that this package raises by itself.

KernelError
├── ArgumentError        a value breaks its rule (also a ValueError)
├── ShapeError           tensors do not fit together (also a ValueError)
├── NotSupportedError    a known backend that cannot run on these inputs (also a NotImplementedError)
├── RanksDisagreeError   the ranks of one group were called differently (also a RuntimeError)
└── NumericalError       a result is further from float64 than the rule allows (also an AssertionError)
"""


class KernelError(Exception):
    """The root: catch it to catch whatever this package raises by itself."""


class ArgumentError(KernelError, ValueError):
    """A value breaks its rule; the message holds the value, the rule and the cure."""


class ShapeError(KernelError, ValueError):
    """Tensors do not fit together."""


class NotSupportedError(KernelError, NotImplementedError):
    """A known backend that cannot run on these inputs, or is not built for this loss; the message says why."""


class RanksDisagreeError(KernelError, RuntimeError):
    """The ranks of one group were called with inputs that cannot be one global batch."""


class NumericalError(KernelError, AssertionError):
    """A result is further from float64 than the rule of `numerics` allows."""
