"""Every tolerance with its reason; tests name them instead of numbers."""

# float64 arrays that were computed in two orders: a few hundred rounding errors of 1e-16.
FLOAT64 = 1e-12
# The same for products and sums over a whole schedule of up to 4,000 steps, and for second moments.
FLOAT64_PRODUCT = 1e-10
# The same where a difference of nearly equal numbers stands between, as 1 - abar does: three digits are lost in it.
FLOAT64_DIFFERENCE = 1e-9
# The same through a whole run, or a quotient by a sigma near 0: coefficients reach 1e4 where little signal is left.
FLOAT64_RUN = 1e-8
# A small network in float64 computed in two orders, relative to the largest value.
FLOAT64_NETWORK = 1e-12
# float32 results against float64: a handful of roundings of 6e-8 on values of order 10.
FLOAT32 = 2e-6
# One rounding to float32, relative: 6e-8.
FLOAT32_ROUNDING = 1e-7
# A few roundings of float32, relative, as of a time or a level that is computed in it.
FLOAT32_FEW = 1e-6
# float32 through one layer, or sums of some hundred products in two orders, on values of order 1.
FLOAT32_SUM = 1e-5
# float32 through a dozen layers, or their gradients, on values of order 1.
FLOAT32_DEEP = 1e-4
# A whole sampling run of a float32 network by two executors: each step hands its roundings on to the next.
FLOAT32_RUN = 1e-3
# A run, or its coefficients, against a peer that keeps its levels and states in float32.
PEER_RUN = 1e-4
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
# The same with products of bfloat16 numbers, whose roundings are 2^-9 each: directly the errors of the sum are those of
# its terms, F(2x2, 3x3) has up to twice and F(4x4, 3x3) up to six times as much.
BFLOAT16_INSTRUCTION = {"direct": 1e-2, "winograd2": 1.5e-2, "winograd4": 4e-2}
# Of a whole network, times the error of PyTorch's own in bfloat16, which rounds between its layers as well.
BFLOAT16_FACTOR = 2.0
# A 3x3 convolution of training and its gradients against float64, over the largest value; the same digit of Winograd's,
# and sums over up to 2,300 products.
WINOGRAD = 3e-5
# Gradients of a whole small network in training against float64, over the largest value of each: twenty convolutions
# and as many norms one behind the other, forth and back.
TRAINING_NETWORK = 1e-4
# A whole small float32 network against a peer's of the same weights: the convolutions and norms sum in other orders.
PEER_NETWORK = 1e-5
# A fitted order of convergence: how far the slope may be from theory.
ORDER = 0.15
