"""A trained run answers: `python predict.py --workdir=checkpoints/fable --input=.`."""

from pathlib import Path

from absl import flags

from lstm_jax import command_line, prediction
from lstm_jax.errors import UserError

CHECKOUT = Path(__file__).parent
WORKDIR = flags.DEFINE_string(
    "workdir", str(CHECKOUT / "checkpoints" / "fable"), "Folder of the run."
)
INPUT = flags.DEFINE_string("input", None, "Words to continue.")
INTERACTIVE = flags.DEFINE_bool("interactive", False, "Ask for words again and again.")
NUM_WORDS = flags.DEFINE_integer("num_words", 32, "Words to add.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: always the likeliest word.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest; 0: from all.")
SEED = flags.DEFINE_integer("seed", 0, "Randomness of the draws.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the best or the last.")


def main() -> None:
    """Continues the words given, or asks for some."""
    sampling = prediction.Sampling(
        NUM_WORDS.value, TEMPERATURE.value, TOP_K.value, SEED.value
    )
    prediction.check_sampling(sampling)
    text = INPUT.value
    if (text is None) != INTERACTIVE.value:
        raise UserError('give either --input="some words" or --interactive')
    run = prediction.load(WORKDIR.value, STEP.value)
    if text is None:
        prediction.converse(run, sampling)
    else:
        print(prediction.continue_text(run, text, sampling))


if __name__ == "__main__":
    command_line.run(main)
