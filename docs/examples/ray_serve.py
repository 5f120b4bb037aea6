"""fastdiff on Ray Serve: `FASTDIFF_MODEL=/models/digits serve run ray_serve:app`, and docs/serving.md for the rest.

The model's folder must be seen by every machine. FASTDIFF_REPLICAS is how many engines there are: 2, or 1-4 for as many
as the queue asks for.
"""

import os

import fastdiff as fd

numbers = [int(number) for number in os.environ.get("FASTDIFF_REPLICAS", "1-4").split("-")]
app = fd.serving.deployment(os.environ["FASTDIFF_MODEL"], replicas=(numbers[0], numbers[-1]), capacity=16, num_cpus=1)
