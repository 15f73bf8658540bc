"""The errors that this package raises.

KernelError
├── ArgumentError        a value breaks its rule (also a ValueError)
├── ShapeError           tensors do not fit together (also a ValueError)
├── NotSupportedError    a known backend that cannot run on these inputs (also a NotImplementedError)
├── RanksDisagreeError   the ranks of one group were called differently (also a RuntimeError)
└── NumericalError       a result is further from float64 than the rule allows (also an AssertionError)
"""


class KernelError(Exception):
    """The base class of every error that this package raises itself."""


class ArgumentError(KernelError, ValueError):
    """A value breaks its rule. The message names the value, the rule and the cure."""


class ShapeError(KernelError, ValueError):
    """Tensors do not fit together in shape, type or device."""


class NotSupportedError(KernelError, NotImplementedError):
    """The requested backend exists but cannot run on these inputs. The message gives the reason."""


class RanksDisagreeError(KernelError, RuntimeError):
    """The ranks of one group called a loss with inputs that do not form one global batch."""


class NumericalError(KernelError, AssertionError):
    """A result is further from float64 than the rule of `numerics` allows."""
