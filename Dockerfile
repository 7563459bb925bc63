# One image; each process is a command (see docker-compose.yml). tools/image.py builds and tries it.
ARG PYTHON=python:3.11-slim@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93

FROM ${PYTHON} AS build
WORKDIR /src
RUN python -m venv /build && python -m venv --without-pip /venv
COPY requirements.build.lock requirements.lock ./
RUN /build/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.build.lock \
 && /build/bin/pip --python /venv/bin/python install --no-cache-dir --no-compile --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE manage.py ./
COPY config config
COPY ingest ingest
COPY exhaust exhaust
RUN /build/bin/pip wheel -q --no-deps --no-build-isolation -w dist . \
 && /build/bin/pip --python /venv/bin/python install -q --no-index --no-deps --no-compile dist/*.whl \
 && /build/bin/cyclonedx-py environment --of JSON -o /venv/sbom.json /venv/bin/python
# What no process loads: tests, sources, languages without pages of ours, services of AWS beside S3 and sign-in, Arrow's
# own clients, symbols. Then bytecode, for the root is read-only.
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends binutils >/dev/null
RUN cd /venv/lib/python3*/site-packages \
 && find . -depth \( -name tests -o -name SelfTest -o -name include -o -name '*.p[oxy][xdi]' -o -name '*.po' -o -name '*.a' \) -exec rm -rf {} + \
 && find . -path '*/locale/*' -prune -type d ! -name 'en*' ! -name hi ! -name ar -exec rm -rf {} + \
 && find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name 'sso*' ! -name sts ! -name signin -exec rm -rf {} + \
 && rm -rf boto3/examples django/contrib/gis numpy/f2py numpy/distutils drf_spectacular_sidecar/static/*/redoc \
    pyarrow/*flight* pyarrow/*arrow_s3* pyarrow/_s3fs* pyarrow/src pyarrow/*.so.*.*.* pyarrow/libarrow_python.so \
 && find . -name '*.so*' ! -path '*.libs/*' -exec strip --strip-unneeded {} + \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash .

FROM ${PYTHON}
LABEL org.opencontainers.image.title=Exhaust \
      org.opencontainers.image.description="Takes in what people say to bots and what apps record, and gives it back as files behind links that expire." \
      org.opencontainers.image.licenses=Apache-2.0
RUN useradd --system --uid 10001 --create-home exhaust && install -d -m 0700 -o exhaust /var/exhaust
COPY --from=build /venv /venv
COPY manage.py /app/manage.py
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 EXHAUST_DATA_DIR=/var/exhaust
USER exhaust
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=6 CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["uvicorn", "config.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--workers", "2", "--http", "config.asgi:HttpProtocol", "--loop", "ingest.collector.loop:Loop", "--ws", "none", "--lifespan", "on", "--no-proxy-headers", "--no-server-header", "--no-access-log", "--backlog", "2048", "--timeout-graceful-shutdown", "30", "--timeout-worker-healthcheck", "30"]
