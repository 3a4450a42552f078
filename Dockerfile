# Two stages: the first builds the wheel (with the tracker in it), the second holds only what runs.
FROM python:3.11-slim-bookworm AS build
# A company's own certificate authority, where the registries are behind one: --build-arg NODE_EXTRA_CA_CERTS=/path
ARG NODE_EXTRA_CA_CERTS
WORKDIR /source
COPY . .
RUN python -m venv /opt/sidecar \
    && /opt/sidecar/bin/pip install --no-cache-dir .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin sidecar \
    && install --directory --owner=10001 --group=10001 /data
COPY --from=build /opt/sidecar /opt/sidecar
ENV PATH=/opt/sidecar/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SIDECAR_DATABASE=/data/sidecar.db \
    SIDECAR_HOST=0.0.0.0
USER 10001
VOLUME /data
EXPOSE 8787
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"SIDECAR_PORT\", \"8787\")}/healthz', timeout=4)"]
ENTRYPOINT ["sidecar"]
CMD ["serve"]
