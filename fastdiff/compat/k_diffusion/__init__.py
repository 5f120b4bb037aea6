"""k-diffusion's and EDM's functions on coefficient tables: the update of each evaluation is one fused op.

`import fastdiff.compat.k_diffusion as K` gives K.sampling, K.external and K.utils, and every name here as well.

Source: Crowson, k-diffusion, sampling.py and external.py; Karras et al. (2022), arXiv:2206.00364, algorithm 2.
"""

from fastdiff.compat.k_diffusion import external, sampling, utils
from fastdiff.compat.k_diffusion.external import *  # noqa: F403
from fastdiff.compat.k_diffusion.sampling import *  # noqa: F403
from fastdiff.compat.k_diffusion.utils import *  # noqa: F403

# A star brings what the module's own list names.
__all__ = ["external", "sampling", "utils"]
__all__ += external.__all__
__all__ += sampling.__all__
__all__ += utils.__all__
