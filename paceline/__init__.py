"""What every role shares: types, errors, sampling, noise, rows, codec, rpc, client, engine."""

__version__ = "0.1.0"
