# `pig app` on a CPU, as a user without rights:
#
#     docker build --tag pig .
#     docker run --publish 127.0.0.1:7860:7860 --volume "$PWD":"$PWD":ro --workdir "$PWD" pig app --host 0.0.0.0 --index videos.lance
#
# docs/search.md says which folders to mount.

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
# PyPI's torch for Linux comes with several GB of CUDA libraries: give the index of PyTorch's CPU wheels, which its
# installation page names, with --build-arg PIP_EXTRA_INDEX_URL=URL, which pip reads.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(echo /wheel/*.whl)[app]"
RUN useradd --create-home --uid 1000 pig
USER 1000
WORKDIR /home/pig
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/healthz', timeout=5)"]
ENTRYPOINT ["pig"]
CMD ["app", "--host", "0.0.0.0", "--index", "videos.lance"]
