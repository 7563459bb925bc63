# One image; each process is a command (see docker-compose.yml).
FROM python:3.11-slim@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93 AS build
WORKDIR /src
RUN python -m venv /venv
COPY requirements.lock ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md manage.py ./
COPY config config
COPY ingest ingest
COPY exhaust exhaust
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93
RUN useradd --system --uid 10001 --create-home exhaust && install -d -m 0700 -o exhaust /var/exhaust
COPY --from=build /venv /venv
COPY manage.py /app/manage.py
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 EXHAUST_DATA_DIR=/var/exhaust
USER exhaust
EXPOSE 8000
CMD ["uvicorn", "config.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--workers", "2", "--http", "config.asgi:HttpProtocol", "--loop", "ingest.collector.loop:Loop", "--ws", "none", "--lifespan", "on", "--no-proxy-headers", "--no-server-header", "--no-access-log", "--backlog", "2048", "--timeout-graceful-shutdown", "30", "--timeout-worker-healthcheck", "30"]
