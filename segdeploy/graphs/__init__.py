"""ONNX graphs: written from a network, asked, rewritten."""
