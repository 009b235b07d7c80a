# A drafter for machines without a GPU. With a CPU build of torch the image is small; without the argument torch comes
# with CUDA, which works too and is several gigabytes larger.
#
#   docker build -f deploy/docker/drafter.Dockerfile --build-arg TORCH_INDEX=URL -t paceline-drafter .
#
# URL: the index of CPU builds, as the install page of pytorch.org gives it.
FROM python:3.11-slim

ARG TORCH_INDEX=""
WORKDIR /opt/paceline
COPY requirements.txt ./
RUN torch="$(grep '^torch==' requirements.txt)" \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" \
    && pip install --no-cache-dir --constraint requirements.txt \
    accelerate cryptography grpcio grpcio-health-checking grpcio-reflection huggingface-hub msgpack numpy protobuf \
    rich safetensors scipy setuptools tokenizers transformers
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 10001 paceline

# One thread a worker, and none that spins while it waits: more workers on a machine make it faster, more threads slower.
ENV OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0 OMP_WAIT_POLICY=PASSIVE
USER 10001
WORKDIR /home/paceline
EXPOSE 50052
STOPSIGNAL SIGTERM
ENTRYPOINT ["paceline", "drafter"]
