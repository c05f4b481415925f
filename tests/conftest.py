import jaxtyping

jaxtyping.install_import_hook("lstm_jax", "beartype.beartype")
