"""Parts of packages that cannot be imported whole here.

Of torchvision and timm only some modules are measured, and their own `__init__` wants compiled
operators that do not fit every build of torch.
"""

import os
import sys
import sysconfig
import types


def without_init(*names: str) -> None:
    """Makes packages importable whose own `__init__` is not run."""
    for name in names:
        if name not in sys.modules:
            module = types.ModuleType(name)
            module.__path__ = [os.path.join(sysconfig.get_path("purelib"), *name.split("."))]
            sys.modules[name] = module
