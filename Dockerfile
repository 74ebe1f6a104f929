# The service and its default weights. EXTRA=cpu serves with ONNX Runtime, without torch; EXTRA=gpu has both, for CUDA.
ARG BASE=docker.io/library/python:3.11.13-slim-bookworm
ARG EXTRA=cpu

# The packages without the source, so that a change of the source reinstalls none of them. pip stays in this stage.
# triton, which torch requires, is removed: it needs a C compiler, which the image lacks, and it contains the libraries
# of another CUDA, some of them three times. Remaining duplicate files are hard-linked.
FROM ${BASE} AS packages
ARG EXTRA
ENV PIP_CONSTRAINT=/app/docker/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY pyproject.toml ./
COPY docker/constraints.txt docker/requirements.py docker/
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$EXTRA" in cpu|gpu) ;; *) echo "EXTRA must be cpu or gpu" >&2; exit 2 ;; esac \
    && python3 docker/requirements.py "$EXTRA" serve grpc telemetry > requirements.txt \
    && python3 -m venv /pip && python3 -m venv --without-pip .venv \
    && /pip/bin/pip --python .venv/bin/python install --quiet --requirement requirements.txt \
    && if [ "$EXTRA" = gpu ]; then /pip/bin/pip --python .venv/bin/python uninstall --quiet --yes triton; fi \
    && hardlink --quiet --ignore-time --minimum-size 1M .venv

# The wheel, unpacked into its own folder, so that it becomes one layer. Compiled here, because the service writes no
# files; made readable for the service's user, whatever the umask of the checkout.
FROM packages AS wheel
COPY LICENSE README.md pyproject.toml setup.py ./
COPY model/ model/
COPY service/ service/
COPY weights/ weights/
COPY msmlp/ msmlp/
RUN --mount=type=cache,target=/root/.cache/pip \
    /pip/bin/pip wheel --quiet --no-deps --wheel-dir /dist . \
    && /pip/bin/pip --python .venv/bin/python install --quiet --no-deps --no-compile --prefix /wheel /dist/msmlp-*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /wheel -p /app/.venv /wheel \
    && chmod -R a+rX /wheel

FROM ${BASE} AS base-cpu

# What the NVIDIA Container Toolkit hands in: every GPU it may, with CUDA and nvidia-smi.
FROM ${BASE} AS base-gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM base-${EXTRA} AS service
RUN useradd --no-log-init --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin msmlp
WORKDIR /app
COPY --from=packages /app/.venv/ .venv/
COPY --from=wheel /wheel/ .venv/
COPY --chmod=644 docker/healthy.py docker/
# ONNX Runtime would otherwise send usage events and write a device id.
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "docker/healthy.py"]
ENTRYPOINT ["msmlp", "serve", "--host", "0.0.0.0"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="msmlp" \
      org.opencontainers.image.description="Image classification that spends compute only where an image needs it" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.revision="${REVISION}"
