"""A file an engine. Each has `version()` and `load(folder, threads, variant)`, which gives a function from an image
[1, 3, H, W] to logits [1, classes]; where an engine reads a file of its own, `convert(folder)` makes it from
`network.pt2` or `network.onnx`. The imports are those of the engine's environment, so only its process imports it.
"""
