"""Compress a PyTorch network: which ranks it has, what they cost, what they lose.

The names are listed in `__init__.pyi`. Each is imported when it is first used: PyTorch
and Ax take seconds, and `ax-pac --help` should not wait for them.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("ax-pac")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
