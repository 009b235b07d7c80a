# A verifier, or a drafter on a GPU (`--entrypoint "paceline drafter"`): torch with CUDA, whose libraries come with its
# wheel, so that the host needs NVIDIA's driver and container toolkit only.
#
#   docker build -f deploy/docker/verifier.Dockerfile -t paceline-verifier .
FROM python:3.11-slim

WORKDIR /opt/paceline
COPY requirements.txt ./
RUN pip install --no-cache-dir --constraint requirements.txt \
    accelerate cryptography grpcio grpcio-health-checking grpcio-reflection huggingface-hub msgpack numpy protobuf \
    rich safetensors scipy setuptools tokenizers torch transformers
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 10001 paceline

ENV OMP_NUM_THREADS=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /home/paceline
EXPOSE 50052
STOPSIGNAL SIGTERM
ENTRYPOINT ["paceline", "verifier"]
