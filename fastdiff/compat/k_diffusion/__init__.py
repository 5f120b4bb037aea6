"""k-diffusion's and EDM's functions on coefficient tables: the update of each evaluation is one fused op.

`import fastdiff.compat.k_diffusion as K` gives K.sampling, K.external, K.layers, K.utils, K.evaluation and K.config,
and every name of the first four here as well.

Source: Crowson, k-diffusion, sampling.py and external.py; Karras et al. (2022), arXiv:2206.00364, algorithm 2.
"""

from typing import Any

from fastdiff.compat.k_diffusion import config, evaluation, external, layers, sampling, utils
from fastdiff.compat.k_diffusion._missing import missing
from fastdiff.compat.k_diffusion.external import *  # noqa: F403
from fastdiff.compat.k_diffusion.layers import *  # noqa: F403
from fastdiff.compat.k_diffusion.sampling import *  # noqa: F403
from fastdiff.compat.k_diffusion.utils import *  # noqa: F403

# A star brings what the module's own list names.
__all__ = ["config", "evaluation", "external", "layers", "sampling", "utils"]
__all__ += external.__all__
__all__ += layers.__all__
__all__ += sampling.__all__
__all__ += utils.__all__

_ELSEWHERE = {
    "augmentation": "take it from k_diffusion; fastdiff's trainer has flips",
    "gns": "take it from k_diffusion",
    "models": "its networks are there; give one to Denoiser here",
}


def __getattr__(name: str) -> Any:
    return missing(name, __name__, _ELSEWHERE)
