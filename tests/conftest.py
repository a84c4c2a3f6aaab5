"""Eight simulated CPU devices for the whole suite, and compilation that saves its own time rather than the program's."""

import os

# Read when the first device is made. Tests run tiny programs once: LLVM's expensive passes would take most of their time.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

# Unlike the XLA flag for it, this does not reach the processes that tests start.
jax.config.update("jax_num_cpu_devices", 8)
