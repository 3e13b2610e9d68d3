"""Measurements of fastrnn against torch.nn.RNN, against other libraries and against the machine."""
