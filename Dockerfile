# The service and its default weights. EXTRA=cpu serves with ONNX Runtime, without torch; EXTRA=gpu has both, for CUDA.
ARG BASE=docker.io/library/python:3.11.13-slim-bookworm
ARG EXTRA=cpu

# Names of the packages without their source: a change of source then installs nothing anew.
FROM ${BASE} AS project
ENV PIP_CONSTRAINT=/app/docker/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY LICENSE pyproject.toml setup.py ./
COPY docker/constraints.txt docker/
COPY service/grpc/inference.proto service/grpc/
RUN mkdir model msmlp && touch README.md model/__init__.py msmlp/__init__.py service/__init__.py

# The pip that installs stays here. torch brings triton, which compiles kernels with a C compiler: none is in the image,
# and where triton is, torch would try. It also holds the libraries of another CUDA, some of them three times. What is
# still there twice is linked, as the packages themselves cannot.
FROM project AS packages
ARG EXTRA
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$EXTRA" in cpu|gpu) ;; *) echo "EXTRA is cpu or gpu" >&2; exit 2 ;; esac \
    && python3 -m venv /pip && python3 -m venv --without-pip .venv \
    && /pip/bin/pip --python .venv/bin/python install --quiet --editable ".[$EXTRA,serve,grpc,telemetry]" \
    && if [ "$EXTRA" = gpu ]; then /pip/bin/pip --python .venv/bin/python uninstall --quiet --yes triton; fi \
    && hardlink --quiet --ignore-time --minimum-size 1M .venv

# Put together here and copied as one layer, so that nothing lies in two. Compiled, as the service writes nothing;
# readable by its user whatever the umask of the checkout was.
FROM ${BASE} AS app
WORKDIR /app
COPY LICENSE ./
COPY weights/ weights/
COPY model/ model/
COPY msmlp/ msmlp/
COPY service/ service/
COPY --from=packages /app/service/grpc/inference.binpb service/grpc/
COPY docker/healthy.py docker/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash model msmlp service && chmod -R a+rX .

FROM ${BASE} AS service
RUN useradd --no-log-init --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin msmlp
WORKDIR /app
COPY --from=packages /app/.venv/ .venv/
COPY --from=app /app/ ./
# ONNX Runtime would send usage events out of the container, and write a device id for them.
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "docker/healthy.py"]
ENTRYPOINT ["msmlp", "serve", "--host", "0.0.0.0"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="msmlp" \
      org.opencontainers.image.description="Image classification that spends compute only where an image needs it" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"
