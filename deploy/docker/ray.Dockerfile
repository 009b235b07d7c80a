# A node of a Ray cluster, of any kind: every role, torch with CUDA, and Ray. KubeRay starts it (deploy/kuberay).
#
#   docker build -f deploy/docker/ray.Dockerfile -t paceline-ray .
FROM python:3.11-slim

# KubeRay's probes ask with wget.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/paceline
COPY requirements.txt ./
RUN pip install --no-cache-dir --constraint requirements.txt \
    accelerate cryptography fastapi grpcio grpcio-health-checking grpcio-reflection huggingface-hub jinja2 msgpack \
    numpy prometheus-client protobuf pydantic "ray[serve]" rich safetensors scipy setuptools tokenizers torch \
    transformers uvicorn
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 10001 paceline

ENV OMP_NUM_THREADS=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /home/paceline
