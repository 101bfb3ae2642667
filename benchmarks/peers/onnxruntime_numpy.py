"""What most people ship: plain ONNX Runtime on the logits, pre- and post-processing in NumPy and Pillow.

    python benchmarks/peers/onnxruntime_numpy.py GRAPH.onnx HEIGHT WIDTH IMAGE...

GRAPH takes float32 (N, 3, H, W), normalised, and gives logits (N, K, H, W).
"""

import sys

import onnxruntime
from _loop import class_maps_of, cores, normalised, serve


def main() -> None:
    graph, height, width, *files = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    serve(lambda batch: class_maps_of(session.run(None, {name: normalised(batch)})[0]), int(height), int(width), files)


if __name__ == "__main__":
    main()
