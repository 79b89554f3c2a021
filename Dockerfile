# One image for CPU and GPU:     docker compose build train
# A small image without CUDA:    TORCH_INDEX_URL=<PyTorch's CPU wheel index> docker compose build train
#                                (its address is on PyTorch's "Get started" page, platform CPU)
# With W&B and MLflow:           EXTRAS=trackers docker compose build train
#
# Stages: environment (Python and its packages) -> tokenizer (trained once, on text in the image)
# -> extended (with EXTRAS) -> runtime (what ships, the default) and test (the same files plus the test-suite). object-store
# is the server of the compose stack, which the tests run too.
# What changes least comes first, so that an edit in app/ rebuilds only the last small layers.
# No `# syntax=` line: cache mounts are part of every BuildKit, and it would be one more pull.

FROM python:3.11-slim-bookworm AS environment

ARG TORCH_INDEX_URL=""

# tini is process 1: the kernel drops signals for a process 1 that has no handler yet, so SIGTERM
# in the first moments would be lost. Triton compiles its launchers with the system's C compiler
# the first time torch.compile runs on a GPU; a CPU image does without.
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends \
        tini $([ -n "$TORCH_INDEX_URL" ] || echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH

# Byte code is compiled here, on all cores: nothing can be written on a read-only root later, and
# without it every start would compile torch again. What the job never imports is left out; a
# package may ship files in the syntax of a newer Python, which is why failures are not fatal.
COPY requirements.txt /opt/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
    && pip install --disable-pip-version-check --no-compile --progress-bar off \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -r /opt/requirements.txt \
    && (python -m compileall -qq -j 0 \
        -x '/tests?/|/testing/_internal/|/transformers/models/(?!__init__|auto/|llama/)' \
        /opt/venv/lib /usr/local/lib/python3.11 || true)

# The id is a number because Kubernetes checks runAsNonRoot against a number. A named volume
# takes over the owner of the folder that it is first mounted on.
RUN groupadd --gid 10001 trainer \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp trainer \
    && install -d -o 10001 -g 10001 /data /checkpoints

ENV HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TOKENIZERS_PARALLELISM=true

WORKDIR /app


# Only the files that training the tokenizer needs: an edit elsewhere does not train it again.
FROM environment AS tokenizer
COPY app/__init__.py app/errors.py app/failures.py app/printable.py app/
COPY app/data/__init__.py app/data/builtin.py app/data/data_dir.py app/data/tokenizer.py app/data/
COPY app/model/__init__.py app/model/hub_failures.py app/model/hub_snapshot.py app/model/
COPY app/settings/__init__.py app/settings/local_paths.py app/settings/
COPY app/stores/__init__.py app/stores/durable_files.py app/stores/
RUN python -c "from app.data.tokenizer import BUILTIN_DIRECTORY, build_image_tokenizers; \
build_image_tokenizers(BUILTIN_DIRECTORY)"


FROM environment AS test-environment
# Of Debian's package only the program that tries the alerts of k8s/components/monitoring.
RUN cd /tmp && apt-get update -qq \
    && apt-get download -qq prometheus \
    && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -C / ./usr/bin/promtool \
    && rm -rf prometheus_*.deb /var/lib/apt/lists/*
COPY requirements-*.txt /opt/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --progress-bar off \
        -c /opt/requirements.txt -r /opt/requirements-test.txt \
        -r /opt/requirements-trackers.txt -r /opt/requirements-evaluation.txt \
        -r /opt/requirements-gguf.txt \
    && pip install --disable-pip-version-check --progress-bar off \
        --require-hashes -r /opt/requirements-store.txt


# A user of its own, and the group of the job, which reads the key.
FROM python:3.11-slim-bookworm AS object-store
COPY requirements-store.txt /opt/requirements-store.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --no-compile --progress-bar off \
        --root-user-action=ignore --require-hashes -r /opt/requirements-store.txt \
    && groupadd --gid 10001 trainer \
    && useradd --uid 10002 --gid 10001 --no-create-home --home-dir /tmp store \
    && install -d -o 10002 -g 10001 -m 0750 /data /key
COPY scripts/object_store.py /opt/object_store.py
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10002:10001
HEALTHCHECK --interval=3s --timeout=5s --start-period=60s --retries=5 \
    CMD ["python", "/opt/object_store.py", "--healthy"]
ENTRYPOINT ["python", "/opt/object_store.py"]


# Optional packages by name: EXTRAS="trackers" installs requirements-trackers.txt.
FROM environment AS extended
ARG EXTRAS=""
COPY requirements-*.txt /opt/extras/
RUN --mount=type=cache,target=/root/.cache/pip \
    for extra in $EXTRAS; do \
        pip install --disable-pip-version-check --progress-bar off \
            -c /opt/requirements.txt -r "/opt/extras/requirements-$extra.txt" || exit 1; \
    done


FROM extended AS runtime-files
COPY --from=tokenizer /opt/builtin /opt/builtin
COPY entrypoint.sh LICENSE ./
COPY app/ app/
RUN python -m compileall -q app


FROM test-environment AS test
COPY --from=runtime-files /opt/builtin /opt/builtin
COPY --from=runtime-files /app /app
COPY . .
ENV MYPY_CACHE_DIR=/tmp/mypy RUFF_NO_CACHE=true HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
USER 10001:10001
ENTRYPOINT []
CMD ["python", "-m", "pytest", "-p", "no:cacheprovider"]


FROM runtime-files AS runtime
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="smollm2-spot-trainer" \
      org.opencontainers.image.description="Trains SmolLM2-135M from scratch on machines that can vanish at any moment" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# Elsewhere both are below the working directory, which is read-only here.
ENV CHECKPOINT_URI=/checkpoints DATA_DIR=/data STARTED_BY=docker
USER 10001:10001
# Healthy is a job that moves: it touches a file of the run's own at each step, and `health` looks
# at its age. Both go by the variables; a run named by flags needs them in the health check too.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-m", "app", "health"]
# SIGTERM is the default already; it is the whole contract with the job, so it stands here.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tini", "--", "/app/entrypoint.sh"]
