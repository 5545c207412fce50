# syntax=docker/dockerfile:1
# docker build -t gptstar:cpu .                                 for any machine
# docker build -t gptstar:cuda --build-arg VARIANT=cuda .       for NVIDIA GPUs (the host has the driver)
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG VARIANT=cpu
WORKDIR /build
RUN python -m venv /opt/gptstar
ENV PATH=/opt/gptstar/bin:$PATH
COPY pyproject.toml README.md ./
# Only what the server needs. torch comes first, so that nothing else decides which of its builds it is.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$VARIANT" in \
      cpu) index=https://download.pytorch.org/whl/cpu ;; \
      cuda) index=https://pypi.org/simple ;; \
      *) echo "VARIANT=$VARIANT must be cpu or cuda" >&2; exit 1 ;; \
    esac \
    && pip install --upgrade 'pip>=25.1' \
    && pip install --index-url "$index" --group torch \
    && pip install --group serve
COPY gptstar gptstar
COPY configs configs
COPY train.py evaluate.py sample.py compare.py serve.py ./
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM python:${PYTHON}
# With a compiler decoding on a CPU is faster, and COMPILE=true works. --build-arg PACKAGES= leaves it out.
ARG PACKAGES=g++
# hadolint ignore=DL3008
RUN if [ -n "$PACKAGES" ]; then \
      apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --uid 10001 --create-home gptstar \
    && install -d -o gptstar -g gptstar /models
COPY --from=build /opt/gptstar /opt/gptstar
ENV PATH=/opt/gptstar/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    HF_HOME=/models/huggingface \
    XDG_CACHE_HOME=/models/cache \
    TORCHINDUCTOR_CACHE_DIR=/models/cache/inductor \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /home/gptstar
USER 10001
VOLUME /models
EXPOSE 7860
# A hub model is fetched in the start period. 503 while loading, 200 when ready.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60m --retries=3 \
    CMD ["python", "-m", "gptstar.serving.probe"]
# SHUTDOWN_SECONDS (30) and a little more: docker run --stop-timeout 45
STOPSIGNAL SIGTERM
CMD ["python", "-m", "gptstar.serving"]
