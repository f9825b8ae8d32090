# surgseg on processors: no PyTorch, not root, nothing to write to. How to run it: docs/containers.md.
#   docker build -f docker/service.Dockerfile -t surgseg:0.1.0 .

FROM debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171 AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin surgseg \
    && install --directory --owner=10001 --group=10001 --mode=700 /var/lib/surgseg/audit

FROM base AS tools
ARG UV_VERSION=0.13.9
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}"
ENV PATH=/opt/uv/bin:/usr/bin:/bin UV_LINK_MODE=copy
WORKDIR /source
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv --without-pip /opt/surgseg

# The libraries change seldom and weigh the most, so they get a layer without our code.
FROM tools AS libraries
RUN uv pip install --no-cache --compile-bytecode --python /opt/surgseg/bin/python \
    --constraints constraints.txt -r pyproject.toml --extra cpu

# Both environments lie in the same place, so that the one can be laid over the other.
FROM tools AS code
COPY LICENSE README.md ./
COPY service/ service/
RUN uv pip install --no-cache --compile-bytecode --python /opt/surgseg/bin/python \
    --build-constraints constraints.txt --no-deps . \
    && rm /opt/surgseg/bin/surgseg-train /opt/surgseg/bin/surgseg-export

FROM base
ARG REVISION=unknown
LABEL org.opencontainers.image.title="surgseg" \
    org.opencontainers.image.description="Real-time surgical video segmentation, on processors" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="docker.io/library/debian:bookworm-20260824-slim"
COPY --from=libraries /opt/surgseg /opt/surgseg
COPY --from=code /opt/surgseg /opt/surgseg
COPY --chmod=755 docker/probe.py /usr/local/bin/surgseg-probe
ENV PATH=/opt/surgseg/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SURGSEG_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["surgseg-probe", "ready"]
ENTRYPOINT ["surgseg"]
CMD ["serve"]
