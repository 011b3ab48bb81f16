# Two images from one file:
#   docker build --target serve -t cat-serve .            the service, without torch (the default target)
#   docker build --target train -t cat-serve-train .      training and export
FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /app
RUN useradd --create-home --uid 1000 cat
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cat_serve cat_serve
COPY training training
COPY export export
COPY model_repository model_repository

FROM base AS train
RUN pip install --constraint constraints.txt torch \
 && pip install --constraint constraints.txt --editable '.[cpu,train,export]'
USER cat
CMD ["python", "-m", "training.train", "--help"]

FROM base AS serve
RUN pip install --constraint constraints.txt --editable '.[cpu]'
USER cat
ENV CAT_SERVE_HOST=0.0.0.0 CAT_SERVE_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["cat-serve", "serve"]
