"""The environments of the engines that genopt carries."""

from __future__ import annotations

from genopt.environments.declaration import Environment

LOCKS = "genopt.environments.locks"
TORCH_FOR_CPUS = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index: the builds without CUDA, which the public index lacks."""

LLAMACPP = Environment(
    name="llamacpp", about="on CPUs llama.cpp is often the fastest for single streams, at 8 bits and without any loss", package=LOCKS,
    lock="llamacpp.txt", disk_bytes=1_500_000_000, native=True,
    # Kernels for this very processor, and nothing for images; the library is otherwise built for any machine of its kind.
    variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
)  # fmt: skip
OPENVINO = Environment(
    name="openvino", about="on CPUs OpenVINO reads prompts fastest, and decodes 8-bit weights about as fast as ONNX Runtime", package=LOCKS,
    lock="openvino.txt", index=TORCH_FOR_CPUS, disk_bytes=5_000_000_000,
)  # fmt: skip
VLLM = Environment(
    name="vllm", about="on NVIDIA GPUs vLLM continues many requests at once about twenty times faster than one by one", package=LOCKS,
    lock="vllm.txt", disk_bytes=20_000_000_000, device="gpu",
)  # fmt: skip
VLLM_CPU = Environment(
    name="vllm-cpu", about="on CPUs vLLM continues many requests at once faster than the other engines, and takes minutes to start", package=LOCKS,
    lock="vllm-cpu.txt", index=TORCH_FOR_CPUS, disk_bytes=4_000_000_000,
)  # fmt: skip
LLMCOMPRESSOR = Environment(
    name="llmcompressor", about="with calibration text llm-compressor rounds weights for vLLM with less damage (GPTQ, AWQ, SmoothQuant)",
    package=LOCKS, lock="llmcompressor.txt", index=TORCH_FOR_CPUS, disk_bytes=4_000_000_000,
)  # fmt: skip
ONNX = Environment(
    name="onnx", about="on CPUs ONNX Runtime makes images of Stable Diffusion pipelines, whose parts optimum-onnx exports", package=LOCKS,
    lock="onnx.txt", index=TORCH_FOR_CPUS, disk_bytes=3_000_000_000,
)  # fmt: skip
