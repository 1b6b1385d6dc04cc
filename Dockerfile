# Two images from one file: `api` (no torch) and `worker` (torch and the solvers).
#   docker build --target api -t lethe-api .
#   docker build --target worker -t lethe-worker .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY core core
COPY demo demo
COPY migrations migrations
COPY training training
COPY worker worker
RUN python -m venv /opt/lethe && /opt/lethe/bin/pip install -c constraints.txt '.[otel]'

FROM build AS build-worker
# Where PyTorch's CPU builds have an index of their own, pass it here, e.g. "--index-url URL".
ARG TORCH_PIP_ARGS=""
RUN /opt/lethe/bin/pip install -c constraints.txt ${TORCH_PIP_ARGS} torch \
    && /opt/lethe/bin/pip install -c constraints.txt '.[worker]'

FROM ${BASE} AS runtime
RUN groupadd --system --gid 10001 lethe && useradd --system --uid 10001 --gid lethe --no-create-home lethe \
    && install -d -o lethe -g lethe /var/lib/lethe/artifacts
ENV PATH=/opt/lethe/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/lethe
USER 10001:10001

FROM runtime AS api
COPY --from=build /opt/lethe /opt/lethe
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["uvicorn", "app.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
     "--no-server-header", "--timeout-graceful-shutdown", "5"]

FROM runtime AS worker
COPY --from=build-worker /opt/lethe /opt/lethe
# One job a device at a time; a busy pool does not answer pings, so there is no such healthcheck.
CMD ["celery", "--app", "worker.celery", "worker", "--queues", "unlearning", "--concurrency", "1", "--loglevel", "INFO"]
