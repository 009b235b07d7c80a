# The coordinator: requests, pacing, tokens to text. No torch, no GPU; the image is a twentieth of a worker's.
#
#   docker build -f deploy/docker/coordinator.Dockerfile -t paceline-coordinator .
FROM python:3.11-slim

WORKDIR /opt/paceline
# What the coordinator imports, in the versions that the tests run with (tests/deploy/test_docker.py compares).
COPY requirements.txt ./
RUN pip install --no-cache-dir --constraint requirements.txt \
    cryptography fastapi grpcio grpcio-health-checking grpcio-reflection huggingface-hub jinja2 msgpack \
    prometheus-client protobuf pydantic rich setuptools tokenizers uvicorn
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 10001 paceline

USER 10001
WORKDIR /home/paceline
EXPOSE 8000 50051
STOPSIGNAL SIGTERM
ENTRYPOINT ["paceline", "coordinator"]
