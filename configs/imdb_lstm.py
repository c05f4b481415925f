"""IMDB sentiment by one LSTM: a Keras tutorial to the letter.

    python train.py --config=configs/imdb_lstm.py

Reviews of 500 words, padded and cut at the front; 5,000 words; two epochs. 84.6 to 87.9
% of the test reviews with seeds 0 to 9, in the median 87.2 %; the tutorial reports
86.39 %. A loss may jump late, and rounding decides in which run (docs/classifiers.md);
`imdb_lstm_clipped` mends that. An epoch takes 40 s on two cores. Seed 0 finds "i really
liked the movie and had fun" positive with 0.873, and "professional disappointment"
negative with 0.719.
"""

from lstm_jax.config import Config, base_config


def get_config() -> Config:
    """Embedding of 32, LSTM of 100, one sigmoid: 213,301 parameters."""
    config = base_config()
    config.task = "classify_text"
    config.batch_size = 128
    config.num_epochs = 2
    config.data.path = "tfds:imdb_reviews"
    config.data.vocab_size = 5000
    config.data.length = 500
    config.model.embedding_size = 32
    config.model.embedding_init = "uniform"
    config.model.hidden_size = 100
    config.model.head = "sigmoid"
    config.checkpoint.every = 50
    config.report.every = 28
    return config
