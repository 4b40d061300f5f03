"""Every TensorRT recipe through a builder, without a GPU."""
