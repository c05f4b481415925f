"""A trained run answers: `python predict.py --input="long ago ,"`."""

from pathlib import Path

from absl import flags

from lstm_jax import (
    classifying,
    command_line,
    continuation,
    devices,
    prediction,
)
from lstm_jax.compilation import keep_compiled
from lstm_jax.errors import UserError

CHECKOUT = Path(__file__).parent
WORKDIR = flags.DEFINE_string(
    "workdir", str(CHECKOUT / "checkpoints" / "fable"), "Folder of the run."
)
STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the best or the last.")
INPUT = flags.DEFINE_string("input", None, "Words to continue, or a text to classify.")
INPUT_FILE = flags.DEFINE_string(
    "input_file", None, "The same, one a line; - reads standard input."
)
INTERACTIVE = flags.DEFINE_bool("interactive", False, "Ask again and again.")
IMAGE = flags.DEFINE_string("image", None, "A PNG of a digit, light on dark.")
INDEX = flags.DEFINE_integer("index", None, "An image of the test split.")
SHOW_IDS = flags.DEFINE_bool("show_ids", False, "Show a text as the model sees it.")
NUM_WORDS = flags.DEFINE_integer("num_words", 32, "Words to add.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: always the likeliest word.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest; 0: from all.")
SEED = flags.DEFINE_integer("seed", 0, "Randomness of the draws.")


def main() -> None:
    """Answers what is given, or asks."""
    sampling = continuation.Sampling(
        NUM_WORDS.value, TEMPERATURE.value, TOP_K.value, SEED.value
    )
    continuation.check_sampling(sampling)
    texts = (INPUT.value, INPUT_FILE.value, INTERACTIVE.value or None)
    images = (IMAGE.value, INDEX.value)
    if sum(value is not None for value in texts + images) != 1:
        raise UserError(
            'give one of --input="some words", --input_file, --interactive, --image '
            "and --index"
        )
    devices.use_cpus(0, classifying.BATCH)
    keep_compiled()
    run = prediction.load(WORKDIR.value, STEP.value)
    of_images = run.vocabulary is None
    if of_images != (images != (None, None)):
        wanted = "--image or --index" if of_images else "--input, or a file of texts"
        raise UserError(f"a run of task {run.config.task!r} takes {wanted}")

    sampled = (NUM_WORDS, TEMPERATURE, TOP_K, SEED)
    for flag in sampled if run.labels else (SHOW_IDS,):
        if flag.present:
            raise UserError(
                f"--{flag.name} is nothing for a run of task {run.config.task!r}"
            )

    def answer(texts: list[str]) -> None:
        if not run.labels:
            for text in texts:
                print(continuation.continue_text(run, text, sampling), flush=True)
            return
        for text, found in zip(
            texts, classifying.classify_texts(run, texts), strict=True
        ):
            shown = found.seen if SHOW_IDS.value else text
            print(f"{found.label} {found.probability:.3f}  {shown}", flush=True)

    if IMAGE.value is not None:
        found = classifying.classify_image(run, IMAGE.value)
        print(f"{found.label} {found.probability:.3f}")
    elif INDEX.value is not None:
        found, truth = classifying.classify_test_image(run, INDEX.value)
        print(f"{found.label} {found.probability:.3f}  (is {truth})")
    elif INPUT.value is not None:
        answer([INPUT.value])
    elif INPUT_FILE.value is not None:
        name = "/dev/stdin" if INPUT_FILE.value == "-" else INPUT_FILE.value
        texts = classifying.read_lines(name)
        if run.labels:
            classifying.check_texts(run, texts)
        answer(list(texts.values()))
    else:
        command_line.ask(prediction.prompt(run), lambda text: answer([text]))


if __name__ == "__main__":
    command_line.run(main)
