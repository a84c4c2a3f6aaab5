"""`python -m chameleon_jax NAME` is `chameleon NAME`, where the script is not on the path."""

from chameleon_jax.commands import main

main()
