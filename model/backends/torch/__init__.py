"""The torch backend, on a CPU or a GPU, with the features of every image in slabs on the device."""
