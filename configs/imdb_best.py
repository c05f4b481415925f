"""IMDB sentiment as well as an LSTM from scratch does it here.

    python train.py --config=configs/imdb_best.py

Batches by length, the maximum over time, dropout, and an average of the parameters.
"""

from configs import imdb_fast
from lstm_jax.config import Config


def get_config() -> Config:
    """Bidirectional, the maximum over time, dropout, an average of the parameters."""
    config = imdb_fast.get_config()
    config.batch_size = 64
    config.num_epochs = 5
    config.data.vocab_size = 30_000
    config.data.length = 400
    config.model.embedding_size = 128
    config.model.embedding_dropout = 0.5
    config.model.hidden_size = 128
    config.model.bidirectional = True
    config.model.pooling = "max"
    config.model.dropout = 0.5
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.999
    config.report.every = 56
    return config
