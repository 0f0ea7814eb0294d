"""Training: one loop, one engine, checkpoints that survive a kill at any moment.

* :func:`fit` trains one task.
* :func:`run` trains a method's stages one after the other and writes its weights.
* :func:`train` does that from names and paths, as ``deocc train`` does.
* :class:`SingleDevice` is the engine of the core; a Lightning Fabric object (``deocc[train]``) is one for many devices.
"""

from deocc.train.engine import PRECISIONS, SingleDevice
from deocc.train.loop import fit
from deocc.train.stages import run, train

__all__ = ["PRECISIONS", "SingleDevice", "fit", "run", "train"]
