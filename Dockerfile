# Two images, one recipe; `docker build --target operator .` and `docker build --target engine .` build the same thing the
# local cluster builds with buildah (tests/localkube/images.py). Dependencies come from the lock files alone, so a change of
# code rebuilds one small layer.
#
# BASE is any Debian-like image with Python 3.11 or newer and its venv module. PIP_CERT and PIP_INDEX_URL reach pip while it
# installs and are no part of the result.
ARG BASE=python:3.12-slim

FROM ${BASE} AS operator-dependencies
ARG PIP_CERT
ARG PIP_INDEX_URL
COPY locks/operator.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/requirements.txt \
 && /opt/venv/bin/pip uninstall --quiet --yes setuptools pip \
 && rm -rf /tmp/requirements.txt /root/.cache

# Compiled here and never again: the root file system is read-only when the container runs. Hash-based byte code needs no
# time stamps to agree, so a layer made from the same files is the same layer.
FROM ${BASE} AS operator-code
COPY operator/enginehouse_operator /opt/enginehouse/enginehouse_operator
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/enginehouse

FROM operator-dependencies AS operator
COPY --from=operator-code /opt/enginehouse /opt/enginehouse
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/enginehouse \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# The monitor runs from the same image: command ["python", "-m", "enginehouse_operator.monitor"].
ENTRYPOINT ["python", "-m", "enginehouse_operator"]

FROM ${BASE} AS engine-dependencies
ARG PIP_CERT
ARG PIP_INDEX_URL
COPY locks/engine.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/requirements.txt \
 && /opt/venv/bin/pip uninstall --quiet --yes pip \
 && rm -rf /tmp/requirements.txt /root/.cache

FROM ${BASE} AS engine-code
COPY engine_image/enginehouse_engine /opt/enginehouse/enginehouse_engine
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/enginehouse

FROM engine-dependencies AS engine
COPY --from=engine-code /opt/enginehouse /opt/enginehouse
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/enginehouse \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["python", "-m", "enginehouse_engine"]
