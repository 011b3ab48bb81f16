# Three images from one file:
#   docker build --target serve -t cat-serve .          the service, also over Triton, without torch (the default target)
#   docker build --target train -t cat-serve-train .    training and export
#   docker build --target triton -t cat-serve-triton .  NVIDIA's Triton with the models that ship
FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 cat
WORKDIR /app
COPY constraints.txt ./

# The wheel carries the model that ships; every image installs it, so none holds the sources twice.
FROM base AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY cat_serve cat_serve
COPY training training
COPY export export
COPY model_repository model_repository
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM base AS train
# Debian keeps one version of this data set; to pin it would only break the build when its packaging changes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends dataset-fashion-mnist \
 && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels /wheels
RUN pip install --constraint constraints.txt "$(echo /wheels/*.whl)[cpu,train,export]" \
 && mkdir checkpoints data model_repository runs \
 && chown 1000 checkpoints data model_repository runs
USER 1000
CMD ["python", "-m", "training.train", "--help"]

# Ubuntu 24.04 with Python 3.12. The python backend of older releases corrupts the arrays of numpy 2, and no release
# notes say since when it does not: numpy 1 here; the models check it when they are loaded.
FROM nvcr.io/nvidia/tritonserver:26.10-py3 AS triton
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 cat
WORKDIR /app
COPY constraints.txt ./
COPY --from=wheel /wheels /wheels
RUN sed -i '/^numpy==/d' constraints.txt \
 && python3 -m pip install --constraint constraints.txt "$(echo /wheels/*.whl)[cpu]" 'numpy<2'
COPY model_repository /models
USER 10001
EXPOSE 8000
EXPOSE 8001
EXPOSE 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
CMD ["python3", "-m", "export.triton_server", "--repository", "/models", "--host", "0.0.0.0", "--http-port", "8000"]

FROM base AS serve
COPY --from=wheel /wheels /wheels
RUN pip install --constraint constraints.txt "$(echo /wheels/*.whl)[cpu,triton]"
USER 1000
ENV CAT_SERVE_HOST=0.0.0.0 CAT_SERVE_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["cat-serve", "serve"]
