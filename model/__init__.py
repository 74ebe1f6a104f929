"""The network and everything offline: training, calibration, evaluation, weights, backends."""
