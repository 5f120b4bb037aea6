# Two images from one file, of a checkout:
#     docker build -t fastdiff .                        for CPUs
#     docker build -t fastdiff:cuda --target cuda .     for NVIDIA's GPUs, with the sampling loop in C++
# docs/containers.md has how to run them.

# The wheel. One serves both: the extension uses PyTorch's stable ABI, which its CPU and CUDA builds share.
FROM python:3.12-slim-bookworm AS wheel
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt .
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
    "setuptools>=77" wheel ninja torch
COPY . .
RUN FASTDIFF_CUDA=0 pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels .

# The loop graph (csrc/cuda), on a system whose glibc is older than that of the image it goes to.
FROM nvidia/cuda:12.9.1-devel-ubuntu22.04 AS loop
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY csrc /src/csrc
WORKDIR /src/csrc/cuda
RUN mkdir /built \
    && python3 -c "import nvcc, subprocess; subprocess.run(nvcc.command(nvcc.find(), '/built/_cuda.so'), check=True)"

# What both images are, but for PyTorch.
FROM python:3.12-slim-bookworm AS base
RUN useradd --create-home --uid 1000 fastdiff
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["fastdiff"]
CMD ["serve", "/model", "--host", "0.0.0.0"]

FROM base AS cuda
# PyTorch of the package index brings CUDA's libraries and Triton along.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,from=wheel,source=/src/constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt "$(echo /wheels/*.whl)[serve,hub]"
COPY --from=loop /built/_cuda.so /usr/local/lib/python3.12/site-packages/fastdiff/_cuda.so
USER 1000
WORKDIR /home/fastdiff

FROM base AS cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,from=wheel,source=/src/constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
    "$(echo /wheels/*.whl)[serve,hub]"
USER 1000
WORKDIR /home/fastdiff
