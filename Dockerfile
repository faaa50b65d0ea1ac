# One image for every worker and for the command line; compose.yaml says which runs what.
#
# EXTRA        cpu or gpu: which of the twins of faiss and onnxruntime is installed
# TORCH_INDEX  an additional package index with CPU wheels of torch, for platforms whose default
#              torch is a CUDA build (x86-64 Linux is one), as in the Makefile
FROM python:3.12-slim

ARG EXTRA=cpu
ARG TORCH_INDEX=

ENV DATA_DIR=/data \
    DATABASE_URL=sqlite:////data/app.db \
    MODELS_DIR=/models \
    HF_HOME=/models/huggingface \
    U2NET_HOME=/models/u2net \
    PYTHONUNBUFFERED=1

# A named volume takes over the owner of the folder that it is first mounted on.
RUN useradd --create-home --uid 1000 imgrec \
    && mkdir -p /data /models /products \
    && chown imgrec:imgrec /data /models

WORKDIR /app

# The dependencies alone, so that a change of the code does not install torch again.
COPY pyproject.toml constraints.txt constraints-cpu.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
e = p['optional-dependencies']; print(*p['dependencies'], *e['$EXTRA'], *e['web'], *e['milvus'], *e['parquet'], sep='\n')" > /tmp/needs.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    set -- --disable-pip-version-check -r /tmp/needs.txt -c constraints.txt; \
    if [ "$EXTRA" = cpu ] && [ -n "$TORCH_INDEX" ]; then set -- "$@" --extra-index-url "$TORCH_INDEX"; fi; \
    if [ "$EXTRA" = cpu ]; then set -- "$@" -c constraints-cpu.txt; fi; \
    pip install "$@" || { \
    echo "The install failed. If pip named an nvidia-... or cuda-... conflict: this platform's default"; \
    echo "torch is a CUDA build, which a CPU image must not carry. Build with TORCH_INDEX=URL, the CPU"; \
    echo "wheel index that PyTorch's install page shows."; exit 1; }

COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -e . \
    && python -m compileall -q celeryconfig.py cli web workers pipeline

# celeryconfig.py stands in the working folder: `celery worker -Q embed` needs no -A.
USER 1000:1000
CMD ["imgrec", "--help"]
