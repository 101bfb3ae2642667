"""OpenVINO's Python API on the logits, pre- and post-processing in NumPy and Pillow.

    python benchmarks/peers/openvino_numpy.py GRAPH HEIGHT WIDTH IMAGE...

GRAPH (.onnx or .xml) takes float32 (N, 3, H, W), normalised, and gives logits (N, K, H, W). Its batch is fixed to the
number of images and its float stays float32, as whoever wants the best equal numbers from OpenVINO sets it.
"""

import sys

import openvino
from _loop import class_maps_of, cores, normalised, serve


def main() -> None:
    graph, height, width, *files = sys.argv[1:]
    core = openvino.Core()
    model = core.read_model(graph)
    model.reshape([len(files), 3, int(height), int(width)])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cores()}
    compiled = core.compile_model(model, "CPU", settings)
    serve(lambda batch: class_maps_of(compiled(normalised(batch))[0]), int(height), int(width), files)


if __name__ == "__main__":
    main()
