"""A trained run answers: `python predict.py --input="long ago ,"`."""

import sys
from collections.abc import Mapping
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

NO_ANSWER = "?"  # in the place of one, so that each text has its line
CHECKOUT = Path(__file__).parent
WORKDIR = flags.DEFINE_string(
    "workdir", str(CHECKOUT / "checkpoints" / "fable"), "Folder of the run."
)
STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the best or the last.")
INPUT = flags.DEFINE_string("input", None, "Words to continue, or a text to classify.")
INPUT_FILE = flags.DEFINE_string(
    "input_file",
    None,
    "The same, one a line but for blank ones; - reads standard input. ? stands where "
    "there is no answer.",
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

    if IMAGE.value is not None:
        found = classifying.classify_image(run, IMAGE.value)
        print(f"{found.label} {found.probability:.3f}")
    elif INDEX.value is not None:
        found, truth = classifying.classify_test_image(run, INDEX.value)
        print(f"{found.label} {found.probability:.3f}  (is {truth})")
    elif INPUT.value is not None:
        answer(run, {0: INPUT.value}, sampling)
    elif INPUT_FILE.value is not None:
        name = "/dev/stdin" if INPUT_FILE.value == "-" else INPUT_FILE.value
        answer(run, classifying.read_lines(name), sampling)
    else:
        command_line.ask(
            prediction.prompt(run), lambda text: answer(run, {0: text}, sampling)
        )


def answer(
    run: prediction.Run, texts: Mapping[int, str], sampling: continuation.Sampling
) -> None:
    """Prints a line for each text, by the number of its own line; 0: it has none.

    Raises:
      UserError: no text has an answer.
    """
    reasons = {line: why for line, text in texts.items() if (why := refused(run, text))}
    if len(reasons) == len(texts):
        line, why = next(iter(reasons.items()))
        raise UserError(f"line {line}: {why}" if line else why)
    for line, why in reasons.items():
        print(f"line {line}: {why}", file=sys.stderr)
    good = [text for line, text in texts.items() if line not in reasons]
    found = classifying.classify_texts(run, good) if run.labels else iter(())
    for line, text in texts.items():
        if line in reasons:
            shown = f"{NO_ANSWER} nan    {text}" if run.labels else NO_ANSWER
        elif run.labels:
            label, probability, seen = next(found)
            shown = f"{label} {probability:.3f}  {seen if SHOW_IDS.value else text}"
        else:
            shown = continuation.continue_text(run, text, sampling)
        print(shown, flush=True)


def refused(run: prediction.Run, text: str) -> str:
    """Why a text has no answer; "" if it has one."""
    check = classifying.check_words if run.labels else continuation.check_prompt
    try:
        check(run, text)
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    command_line.run(main, answers=True)
