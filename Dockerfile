# The command erk in a container, for a CPU or for NVIDIA GPUs (docs/howto/cluster.md).
#   docker build -t erk .
#   docker build -t erk --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 .
ARG BASE=python:3.12-slim
FROM ${BASE}

# NVIDIA's images have no Python; torch.compile, which long runs on a GPU use, needs a C++ compiler.
RUN command -v python3 || { apt-get update && apt-get install -y --no-install-recommends \
    g++ python3-dev python3-venv && rm -rf /var/lib/apt/lists/*; }

# The pinned packages, in a layer that changes with requirements.txt alone.
COPY requirements.txt /src/
RUN python3 -m venv /opt/erk && \
    /opt/erk/bin/pip install --no-cache-dir --require-hashes -r /src/requirements.txt

COPY pyproject.toml setup.py README.md LICENSE /src/
COPY erk /src/erk
COPY metrics /src/metrics
COPY configs /src/configs
COPY checkpoints /src/checkpoints
RUN /opt/erk/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src && rm -rf /src

# Any user may run it and write to these folders: docker run --user $(id -u):$(id -g)
RUN useradd --create-home erk && mkdir -m 1777 /cache /work
ENV PATH=/opt/erk/bin:$PATH ERK_CACHE=/cache HOME=/tmp USER=erk
USER erk
WORKDIR /work
CMD ["erk", "--help"]
