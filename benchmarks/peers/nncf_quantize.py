"""NNCF's post-training quantisation with its default options; runs in an environment of its own that has nncf.

    python benchmarks/peers/nncf_quantize.py GRAPH.onnx BATCHES.npz OUT.xml

BATCHES holds normalised float32 arrays (1, 3, H, W), as the graph takes them.
"""

import sys

import nncf
import numpy as np
import openvino


def main() -> None:
    graph, batches, out = sys.argv[1:]
    with np.load(batches) as kept:
        calibration = nncf.Dataset([kept[name] for name in kept.files])
    quantised = nncf.quantize(openvino.Core().read_model(graph), calibration)
    openvino.save_model(quantised, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
