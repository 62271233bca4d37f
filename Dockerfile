# One file, two images: EXTRA=server for the API and the migrations, EXTRA=worker or gpu for what trains.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG EXTRA=server
# For torch without CUDA: https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
WORKDIR /build
COPY pyproject.toml LICENSE README.md ./
COPY app ./app
COPY core ./core
COPY embedded ./embedded
COPY examples ./examples
COPY migrations ./migrations
COPY mpo ./mpo
COPY mpo_client ./mpo_client
COPY workers ./workers
RUN /venv/bin/pip install ".[${EXTRA}]"

FROM python:${PYTHON_VERSION}-slim AS runtime
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 \
    TOKENIZERS_PARALLELISM=false MPO_SCRATCH=/scratch HOME=/scratch MPLCONFIGDIR=/scratch
# A new volume takes over owner and mode of the folder that it is mounted on.
RUN groupadd --gid 10001 mpo \
    && useradd --uid 10001 --gid mpo --no-create-home --home-dir /scratch --shell /usr/sbin/nologin mpo \
    && install --directory --owner=mpo --group=mpo --mode=0700 /store /scratch
COPY --from=build /venv /venv
COPY scripts/container_health.py /opt/mpo/container_health.py
WORKDIR /scratch
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "/opt/mpo/container_health.py", "api"]
CMD ["python", "-m", "uvicorn", "app.main:app", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", \
    "--log-level", "warning", "--timeout-graceful-shutdown", "8"]
