# A GPU host with TensorRT: builds plans and runs them. Untested: no machine with Docker and a GPU was at hand.
#
#   docker build -t segdeploy .
#   docker run --rm --gpus all -v "$PWD:/work" -v "$HOME/.config/segdeploy/key:/run/segdeploy-key:ro" segdeploy \
#       build --model unet --engine trt:fp16
#
# The key is the host's, so that plans built here open there and the other way round. `segdeploy build` makes it on the
# host, or: (umask 077; mkdir -p ~/.config/segdeploy; head -c 32 /dev/urandom > ~/.config/segdeploy/key)
FROM nvcr.io/nvidia/tensorrt:25.10-py3

WORKDIR /opt/segdeploy
COPY pyproject.toml README.md LICENSE ./
COPY segdeploy segdeploy
# TensorRT is the image's own. onnxruntime (CPU) makes and proves graphs; torch comes as the build that is tested.
RUN pip install --no-cache-dir "torch==2.13.0" && pip install --no-cache-dir ".[cpu,train]" "cuda-bindings>=13,<14"

ENV SEGDEPLOY_KEY_FILE=/run/segdeploy-key
WORKDIR /work
ENTRYPOINT ["segdeploy"]
