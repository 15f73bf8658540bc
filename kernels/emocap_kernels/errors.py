"""Defines the errors that this package raises.

KernelError
├── ArgumentError        the value of an argument is not allowed (also a ValueError)
├── ShapeError           tensors do not fit together in shape, type or device (also a ValueError)
├── NotSupportedError    a backend cannot do what was requested (also a NotImplementedError)
├── RanksDisagreeError   the inputs of the ranks do not form one batch (also a RuntimeError)
└── NumericalError       a result differs too much from its float64 value (also an AssertionError)

Each class below KernelError also inherits from the builtin exception in parentheses, so a caller may catch either of
the two classes. With a `group`, an error about the inputs is
raised on all ranks: the rank with invalid inputs raises its own error, and the others raise a RanksDisagreeError.
"""


class KernelError(Exception):
    """Base class of all errors that this package raises."""


class ArgumentError(KernelError, ValueError):
    """Reports an argument whose value is not allowed. The message names the value and says which values are allowed."""


class ShapeError(KernelError, ValueError):
    """Reports tensors that do not fit together in shape, type or device."""


class NotSupportedError(KernelError, NotImplementedError):
    """Reports that a backend, such as the fused kernels, cannot do what was requested. The message gives the reason.

    Most of these errors are raised before anything is computed. With `chunked` and `fused`, a second differentiation of
    a loss raises this error in backward. Only the local loss within images (`region.within`) does not raise it with
    `chunked`, because it has a second derivative there.
    """


class RanksDisagreeError(KernelError, RuntimeError):
    """Reports that the ranks of one group called a loss with inputs that do not form one global batch.

    All ranks of the group raise an error, so that none of them waits for the others.
    """


class NumericalError(KernelError, AssertionError):
    """Reports a result that differs from its float64 value by more than the rule in `numerics` allows.

    Only code that checks results raises it, such as tests. The losses themselves never do.
    """
