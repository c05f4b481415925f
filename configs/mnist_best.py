"""MNIST digits read row by row, as well as two LSTMs do it here.

    python train.py --config=configs/mnist_best.py

Both directions, the maximum over rows, and images shifted by up to two pixels.
99.3 to 99.5 % of the test images with seeds 0 to 4, in the median 99.4 %. An epoch
takes 50 s on one core.
"""

from configs import mnist_rnn
from lstm_jax.config import Config


def get_config() -> Config:
    """Two bidirectional LSTMs on shifted images, the maximum over rows."""
    config = mnist_rnn.get_config()
    config.batch_size = 64
    config.num_epochs = 12
    config.data.shift = 2
    config.model.cell = "lstm"
    config.model.hidden_size = 128
    config.model.num_layers = 2
    config.model.bidirectional = True
    config.model.pooling = "max"
    config.model.dropout = 0.3
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.999
    config.report.every = 134
    return config
