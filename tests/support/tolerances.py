"""Every tolerance with its reason; tests name them instead of numbers."""

# float64 arrays that were computed in two orders: a few hundred rounding errors of 1e-16.
FLOAT64 = 1e-12
# float32 results against float64: a handful of roundings of 6e-8 on values of order 10.
FLOAT32 = 2e-6
# The in-kernel normals against the contract's formula in float64: 3 ulp were seen over 16.8 million draws.
NORMAL_ULP = 6
# float32 networks on differently split batches: PyTorch picks other convolution algorithms per batch size.
BATCH_SPLIT = 1e-5
# One rounding to the storage type, relative.
STORAGE = {"float32": FLOAT32, "bfloat16": 2**-8, "float16": 2**-10, "float64": FLOAT64}
# One instruction of the engine against float64, over the largest value: Winograd's transforms cost a digit of float32.
ENGINE_INSTRUCTION = 1e-5
# A whole small network of the engine against float64, likewise.
ENGINE_NETWORK = 2e-5
# A 3x3 convolution of training and its gradients against float64, over the largest value; the same digit of Winograd's,
# and sums over up to 2,300 products.
WINOGRAD = 3e-5
# A whole small float32 network against a peer's of the same weights: the convolutions and norms sum in other orders.
PEER_NETWORK = 1e-5
