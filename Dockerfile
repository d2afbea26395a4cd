# saga-fast with FFCV. For CPUs:
#   docker build --tag saga-fast .
# For NVIDIA GPUs, with DALI:
#   docker build --tag saga-fast --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 --build-arg EXTRAS=demo,ffcv,dali .
# Files are read and written in the current folder, as its user:
#   docker run --rm [--gpus all] --volume "$PWD:/work" --user "$(id -u):$(id -g)" saga-fast demo
ARG BASE=python:3.11-slim
FROM ${BASE}

COPY tools/system-packages.sh /src/tools/
RUN /src/tools/system-packages.sh runtime && rm -rf /var/lib/apt/lists/*

ARG EXTRAS=demo,ffcv
ENV PATH=/opt/saga-fast/bin:$PATH
RUN python3 -m venv /opt/saga-fast
COPY LICENSE README.md pyproject.toml setup.py /src/
COPY saga_fast /src/saga_fast
RUN pip install --no-cache-dir "/src[${EXTRAS}]"

# --user may name a user whom the image does not know: caches need a home, and torch.compile the name of a user.
ENV HOME=/tmp USER=saga
RUN useradd --uid 10001 saga && mkdir /work && chown saga /work
USER 10001
WORKDIR /work
ENTRYPOINT ["saga-fast"]
