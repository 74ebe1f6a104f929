"""Everything that wants a GPU, as one resumable command; README.md beside this says how a lease is used."""
