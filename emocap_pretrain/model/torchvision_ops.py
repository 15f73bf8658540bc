"""Has the old name of `emocap_torchvision`, for code that was written before the finder got a module of its own."""

from emocap_torchvision import install

__all__ = ["install"]

install()
